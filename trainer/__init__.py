"""One training process, and everything it needs. Each room may use the rooms below it; import-linter checks that.

main, loop, conclude    the path of a run: join the others, train, write down what came of it
watch, passes           what is measured on the way, and how many cells go through the networks together
resolve                 the last look at a request before anything runs; no torch
evaluation/             what is measured on a trained encoder
teachers/               frozen networks whose features are compared
weights/                files of weights: names, formats, exports
state/                  checkpoints, and copies in memory
tracking/               what a run says while it trains: journal, MLflow, pictures
elastic/                processes that come and go
data/                   from images on a disk or in S3 to the batches of a step
method/                 networks, losses, optimizer, the grid of a step, random draws
usercode/               Python files that a run names, and what goes wrong in them
store/                  objects by address, and the layout of a run's directory
contract/               what a run and an experiment are; pydantic only
"""
