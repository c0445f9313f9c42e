"""
RL Zoo from training to an evaluation under attack: the commands, one after the other, in a folder of their own.

    python examples/zoo_run.py [timesteps]
"""

import subprocess
import sys
import tempfile

PROGRAM = [sys.executable, "-m", "sb3_prune_robust"]


def main(timesteps: int = 30_000) -> None:
    with tempfile.TemporaryDirectory() as logs:
        run = ["--algo", "ppo", "--env", "CartPole-v1", "-f", logs]
        budget = ["-n", str(timesteps), "--eval-freq", str(timesteps // 4), "--eval-episodes", "5", "--seed", "0"]
        attacks = ["--attacks", "random,mad,critic", "--eps", "0.1", "--episodes", "10"]
        for command in (
            [*PROGRAM, "hyperparams", "ppo"],  # the file that the next command gives to the zoo as --conf-file
            [*PROGRAM, "train", *run, *budget],  # python -m rl_zoo3.train, with that file
            [*PROGRAM, "evaluate", *run, *attacks],
            [*PROGRAM, "evaluate", *run, "--load-best", *attacks],
        ):
            print("$", " ".join(command[2:]), flush=True)
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
