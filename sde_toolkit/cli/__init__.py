"""The command line: ``sde-toolkit train | sample | compare``. The only part that knows Hydra."""
