"""How good the embedded class-conditional digits network is: how many of its samples a classifier finds of their class.

    python benchmarks/judge_classes.py           # 500 samples of each row, two minutes on one core

A small convolutional classifier is trained first, on the 1,500 training digits. A sample is clear if the classifier
gives one class a probability of 0.9 or more. Samples are those of DDIM with 50 steps, classes in turn; with guidance a
step is two evaluations. The last rows have no class: `digits` is the embedded network without classes.
"""

from __future__ import annotations

import torch
from report import Report, parser
from torch import Tensor, nn

from sde_toolkit import ScoreModel, classifier_free, ddim, sample
from sde_toolkit.data import digits

CLASSES = 10


def trained(images: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    """A classifier of digits (N, 1, 8, 8) in [−1, 1]."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(1024, 128),
        nn.ReLU(),
        nn.Linear(128, CLASSES),
    )
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-2)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            noisy = images[rows] + 0.15 * torch.randn_like(images[rows])
            nn.functional.cross_entropy(network(noisy), labels[rows]).backward()
            optimizer.step()
    return network.eval()


if __name__ == "__main__":
    words = parser(__doc__)
    words.add_argument("--n", type=int, default=500)
    words.add_argument("--epochs", type=int, default=30)
    given = words.parse_args()
    report = Report(given.results, "embedded-classes", "The embedded class-conditional digits network, 50-step DDIM")
    data, model = digits(), ScoreModel.from_pretrained("digits_classes")
    scaled = model.transform.forward
    classifier = trained(scaled(data.train.float()), data.train_labels, given.epochs)
    report.table("samples of", "number", "of their class", "clear", "spread within a class")
    labels = torch.arange(given.n) % CLASSES

    def judge(name: str, images: Tensor, wanted: Tensor | None) -> None:
        with torch.no_grad():
            said = classifier(scaled(images.float())).softmax(1)
        right = "" if wanted is None else int((said.argmax(1) == wanted).sum())
        kinds = said.argmax(1) if wanted is None else wanted
        groups = [scaled(images[kinds == c].float()) for c in range(CLASSES)]
        spread = sum(group.std(0, unbiased=False).mean().item() * len(group) for group in groups if len(group))
        report.row(name, len(images), right, int((said.amax(1) >= 0.9).sum()), f"{spread / len(images):.3f}")

    shape = (given.n, 1, 8, 8)
    for scale in (1.0, 2.0, 4.0):
        drawn = sample(classifier_free(model, scale), ddim(), steps=50, shape=shape, condition=labels)
        judge(f"`digits_classes`, γ = {scale:g}", drawn.data, labels)
    judge("real test images", data.test, data.test_labels)
    none = torch.full_like(labels, CLASSES)
    judge('`digits_classes`, "no class"', sample(model, ddim(), steps=50, shape=shape, condition=none).data, None)
    judge("`digits`", sample(ScoreModel.from_pretrained("digits"), ddim(), steps=50, shape=shape).data, None)
    report.save()
