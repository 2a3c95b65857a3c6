"""Train the MNIST classifier that the package ships (sde_toolkit/metrics/classifier.py).

    python benchmarks/train_classifier.py --data path/to/mnist.npz

About five minutes on one CPU core. Prints the accuracy on the 10,000 test images after the last epoch (no
early stopping, no choice among epochs) and writes ``mnist_classifier.safetensors`` with
``mnist_classifier.json`` beside it. The seed fixes the run on one machine and one torch version; elsewhere
expect the accuracy to move by about 0.1 %.

An eighth of each batch, besides the digits, is noise and shuffled digits whose target is "every class
equally": without it, 44 % of uniform noise was classified with probability 0.9 or more.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from sde_toolkit.data import mnist
from sde_toolkit.metrics.classifier import MNISTClassifier

WEIGHTS = Path(__file__).resolve().parent.parent / "sde_toolkit" / "evaluation" / "weights"


def augment(images: Tensor) -> Tensor:
    """Rotate by up to 12°, scale by up to 10 %, shift by up to 2 pixels: float (B, 1, 28, 28), 0 outside."""
    n = len(images)
    angle = math.radians(12.0) * (2.0 * torch.rand(n) - 1.0)
    zoom = 1.0 + 0.1 * (2.0 * torch.rand(n, 2) - 1.0)
    shift = (2.0 * torch.rand(n, 2) - 1.0) * 2.0 / 14.0  # the grid spans 2 units over 28 pixels
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(n, 2, 2)
    theta = torch.cat([rotation * zoom[:, None, :], shift[:, :, None]], dim=2)
    grid = nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, align_corners=False)


def not_digits(images: Tensor) -> Tensor:
    """As many images without a digit: white noise, blobs, digits with pixels or 7x7 tiles shuffled."""
    noise, blobs, pixels, tiles = images.chunk(4)
    smooth = nn.functional.avg_pool2d(torch.randn_like(blobs), 5, stride=1, padding=2)
    tiles = nn.functional.unfold(tiles, 7, stride=7)[:, :, torch.randperm(16)]
    made = [
        255.0 * torch.rand_like(noise),
        255.0 * (12.0 * smooth).sigmoid(),
        pixels.flatten(1)[:, torch.randperm(28 * 28)].view_as(pixels),
        nn.functional.fold(tiles, 28, 7, stride=7),
    ]
    return torch.cat(made)


def predict(classifier: MNISTClassifier, images: Tensor) -> Tensor:
    """Class probabilities (N, 10)."""
    with torch.inference_mode():
        return torch.cat([classifier(batch).softmax(dim=1) for batch in images.split(500)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True, help="mnist.npz, or a folder with the IDX files")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder for the weights and the record")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    data = mnist(args.data)
    if data.train_labels is None or data.test_labels is None:
        raise SystemExit("the data set has no labels")

    classifier = MNISTClassifier()
    optimiser = torch.optim.AdamW(classifier.parameters(), weight_decay=0.02)
    steps = args.epochs * (len(data.train) // args.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=args.lr, total_steps=steps)
    start = time.perf_counter()
    for epoch in range(args.epochs):
        total = torch.zeros(())
        batches = torch.randperm(len(data.train)).split(args.batch)[: len(data.train) // args.batch]
        for index in batches:
            # float, so that the classifier sees grey levels between the whole ones, as generated images have
            images = augment(data.train[index].float())
            features = classifier.features(torch.cat([images, not_digits(images[: args.batch // 8])]))
            logits = classifier.classify(nn.functional.dropout(features, 0.3))
            loss = nn.functional.cross_entropy(logits[: args.batch], data.train_labels[index])
            # what is no digit shall look like every class equally
            loss = loss - 0.3 * logits[args.batch :].log_softmax(dim=1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.detach()
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1}/{args.epochs}  loss {total / len(batches):.4f}  {seconds:.0f} s", flush=True)

    probabilities = predict(classifier, data.test)
    top, guess = probabilities.max(dim=1)
    errors = int((guess != data.test_labels).sum())
    record = {
        "test_images": len(guess),
        "test_errors": errors,
        "test_accuracy": 1.0 - errors / len(guess),
        "test_share_with_max_probability_at_least_0.9": float((top >= 0.9).double().mean()),
        "mean_max_probability": round(float(top.double().mean()), 6),
        "command": "python benchmarks/train_classifier.py --data path/to/mnist.npz"
        f" --epochs {args.epochs} --batch {args.batch} --lr {args.lr} --seed {args.seed}"
        f" --threads {args.threads}",
        "seed": args.seed,
        "torch": torch.__version__,
        "train_images": len(data.train),
        "train_seconds": round(time.perf_counter() - start),
        "parameters": sum(p.numel() for p in classifier.parameters()),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "mnist_classifier.safetensors").write_bytes(save(classifier.state_dict()))
    (args.out / "mnist_classifier.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
