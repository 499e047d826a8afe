"""A trainer that may have 3 GiB of memory: tests.integration.starved --spec FILE"""

import resource

from trainer.main import main as train


def main() -> int:
    resource.setrlimit(resource.RLIMIT_DATA, (3 << 30,) * 2)
    return train()
