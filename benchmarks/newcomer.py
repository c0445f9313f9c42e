"""
Types the commands of the README as a newcomer would, and writes down what they print: docs/zoo.md.

    python benchmarks/newcomer.py [PYTHON]    of a fresh environment with this package and its extra "deploy"

In an empty folder outside the repository, with short trainings; half an hour. Of long outputs the last lines are kept.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "zoo.md"
LINES = 16
ZOO = "python -m rl_zoo3.train --gym-packages sb3_prune_robust.zoo --num-threads 1"
PPO = f"{ZOO} --algo ppo --env CartPole-v1"
MODULE = "--conf-file sb3_prune_robust.hyperparams"
EVALUATE = "sb3-prune-robust evaluate"
SAPPO = "--algo sappo --env Pendulum-v1"
ENJOY = "python -m rl_zoo3.enjoy --algo ppo --env CartPole-v1 -f logs --exp-id 1 -n 1000 --no-render --num-threads 1"
ATTACKED = """CartPole-v1:
  n_envs: 8
  n_timesteps: 30_000
  policy: sb3_prune_robust.policies.LipschitzCategoricalPolicy
  normalize: true
  n_steps: 32
  batch_size: 256
  n_epochs: 10
  learning_rate: lin_0.001
  callback:
    - sb3_prune_robust.pruning.PruningCallback: {final_sparsity: 0.7}
    - sb3_prune_robust.attacks.AdversarialTrainingCallback:
        attack: mad
        eps: 0.1
        eps_schedule: linear
        attack_kwargs: {steps: 3, restarts: 1}
"""
FILES = {
    "attacked.yml": ATTACKED,
    "typo.yml": ATTACKED.replace("final_sparsity", "final_sparsty"),
    "laser.yml": ATTACKED.replace("attack: mad", "attack: laser"),
}
ZEROS = (
    'python -c "from stable_baselines3 import PPO; from sb3_prune_robust import sparsity; '
    "print(sparsity(PPO.load('logs/ppo/CartPole-v1_{}/{}'))['actor'])\""
)
HOPPER = (
    'python -c "from stable_baselines3 import PPO; from sb3_prune_robust import sparsity; '
    "print(sparsity(PPO.load('logs/ppo/Hopper-v5_{}/{}'))['actor'])\""
)
HUB = (
    'python -c "from sb3_prune_robust.deployment import save_for_hub; '
    "print(save_for_hub('ppo', 'CartPole-v1', 'logs', exp_id=1, out='hub'))\" && ls hub"
)
ONNX = (
    'python -c "from stable_baselines3 import PPO; from sb3_prune_robust.deployment import export_onnx, shrink; '
    "print(export_onnx(shrink(PPO.load('logs/ppo/CartPole-v1_1/CartPole-v1.zip')), 'policy.onnx'))\""
)
SECTIONS: dict[str, list[str]] = {
    "Train, look, continue": [
        "sb3-prune-robust hyperparams",
        f'{PPO} --conf-file "$(sb3-prune-robust hyperparams ppo)" -n 40000 --eval-freq 10000 --save-freq 20000 '
        "--tensorboard-log tb --seed 0 --log-interval 100",
        ZEROS.format(1, "CartPole-v1.zip"),
        ZEROS.format(1, "best_model.zip"),
        f"{PPO} {MODULE}.ppo -n 5000 --eval-freq -1 --log-interval 100 -i logs/ppo/CartPole-v1_1/CartPole-v1.zip",
        ZEROS.format(2, "CartPole-v1.zip"),
        ENJOY,
        f"{ENJOY} --load-best",
        f"{PPO} {MODULE}.ppo -n 5000 --vec-env subproc -P --eval-freq -1 --log-interval 100",
        "python -m rl_zoo3.plots.plot_train -a ppo -e CartPole-v1 -f logs -x steps",
        "python -m rl_zoo3.plots.all_plots -a ppo -e CartPole-v1 -f logs -o all --no-million",
        "ls tb/*/* logs/ppo/CartPole-v1_1",
        f"timeout -s KILL 25 {ZOO} --algo ppo --env Hopper-v5 {MODULE}.ppo -n 150000 --save-freq 10000 --eval-freq -1 > log; "
        "cp $(ls -t logs/ppo/Hopper-v5_1/rl_model_* | sed -n 2p) logs/ppo/Hopper-v5_1/checkpoint.zip; ls logs/ppo/Hopper-v5_1",
        HOPPER.format(1, "checkpoint.zip"),
        f"{ZOO} --algo ppo --env Hopper-v5 {MODULE}.ppo -n 2048 --eval-freq -1 -i logs/ppo/Hopper-v5_1/checkpoint.zip",
        HOPPER.format(2, "Hopper-v5.zip"),
        "sb3-prune-robust train --algo ppo --env Hopper-v5 -n 12000 --eval-freq 6000 --log-interval 100",
        "sb3-prune-robust train --algo sac --env Pendulum-v1 -n 4000 --eval-freq -1 --log-interval 100",
        "sb3-prune-robust train --algo dqn --env CartPole-v1 -n 20000 --eval-freq -1 --log-interval 1000",
        "sb3-prune-robust train --algo td3 --env Hopper-v5 -n 2000 --eval-freq -1 --log-interval 1000",
        f"sb3-prune-robust train {SAPPO} -n 20000 --eval-freq -1 --log-interval 1000 --seed 0 -params kappa:0.3",
        f"sb3-prune-robust enjoy {SAPPO} -n 1000 --no-render",
        "sb3-prune-robust train --algo ppo --env Acrobot-v1",
        "sb3-prune-robust train --algo ppoo --env Hopper-v5",
    ],
    "Evaluate under attack": [
        f"{EVALUATE} --algo ppo --env CartPole-v1 -f logs --exp-id 1 --attacks random,mad,critic --eps 0.1 --episodes 20",
        f"{EVALUATE} --algo ppo --env CartPole-v1 -f logs --exp-id 1 --load-best --attacks mad,critic --eps 0.1 --episodes 20",
        f"{EVALUATE} --algo ppo --env CartPole-v1 -f logs --exp-id 1 --load-checkpoint 20000 --attacks mad --eps 0.1",
        f"{EVALUATE} --algo ppo --env Hopper-v5 -f logs --attacks mad,critic --eps 0.075 --episodes 20",
        f"{EVALUATE} --algo sac --env Pendulum-v1 -f logs --attacks random,mad,critic --eps 0.1 --episodes 10",
        f"{EVALUATE} {SAPPO} -f logs --attacks random,mad,critic --eps 0.1 --episodes 10",
        f"{EVALUATE} --algo dqn --env CartPole-v1 -f logs --attacks random,mad,critic --eps 0.1 --episodes 10",
        f"{EVALUATE} --algo ppo --env CartPole-v1 -f logs --exp-id 1 --attacks mad,pa-ad --attack-steps 20000 --eps 0.1",
        f"{EVALUATE} --algo ppo --env CartPole-v1 -f logs --exp-id 9 --attacks mad --eps 0.1",
        f"{EVALUATE} --algo ppo --env CartPole-v1 -f logs --exp-id 2 --load-best --attacks mad --eps 0.1",
        f"{EVALUATE} --algo ppo --env CartPole-v1 -f logs --attacks laser --eps 0.1",
        f"{EVALUATE} --algo ppo --env CartPole-v1 -f logs --attacks mad --eps 0",
        "sb3-prune-robust audit logs/dqn/CartPole-v1_1/CartPole-v1.zip --env CartPole-v1 --eps 0.05 --sparsities 0.8,0.9 "
        "--attacks mad,critic --episodes 10",
    ],
    "Train under attack": [
        "cat attacked.yml",
        f"{PPO} --conf-file attacked.yml -f attacked --seed 0 --eval-freq 15000 --log-interval 100",
        f"{EVALUATE} --algo ppo --env CartPole-v1 -f attacked --attacks mad,critic --eps 0.1 --episodes 20",
        f"{PPO} --conf-file typo.yml -f attacked",
        f"{PPO} --conf-file laser.yml -f attacked",
    ],
    "Tune": [
        f"{PPO} {MODULE}.ppo -n 5000 -optimize --n-trials 2 --n-evaluations 1 --storage sqlite:///zoo.db --study-name zoo",
        "sb3-prune-robust tune --algo ppo --env CartPole-v1 --eps 0.1 --n-trials 3 --timesteps 5000 --episodes 5 "
        "--storage sqlite:///tune.db",
        "cat tuned.yml",
        "sb3-prune-robust tune --algo ppo --env CartPole-v1 --eps 0.1 --n-trials 3 --weight 2",
    ],
    "Deploy and share": [ONNX, HUB],
}
HEADER = """# RL Zoo, typed

Every command below was typed in an empty folder, in a fresh environment with this package installed; what it printed stands
under it (of long outputs the last lines), written by `python benchmarks/newcomer.py`. The trainings are short: they show that
the commands work, not what the agents can do.
"""


def typed(command: str, folder: Path, environment: dict[str, str]) -> str:
    print("$", command, flush=True)
    ran = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = [line for line in re.split(r"[\r\n]+", ran.stdout) if line.strip() and not _is_noise(line)]
    shown = lines if len(lines) <= LINES else ["...", *lines[-LINES:]]
    code = [] if ran.returncode == 0 else [f"(exit code {ran.returncode})"]
    known = {str(folder): ".", str(Path(environment["PATH"].split(":")[0]).parent): "ENVIRONMENT"}
    for path, name in known.items():
        shown = [line.replace(path, name).rstrip()[:400] for line in shown]
    text = "\n".join([*shown, *code])
    return f"```\n$ {command}\n{text}\n```"


def _is_noise(line: str) -> bool:
    """Progress bars drawn again and again, and warnings of other packages."""
    return bool(re.search(r"%\|.*\||it/s|Warning|warnings?\.warn|━|^\s+(import|from) ", line))


def main() -> None:
    python = Path(sys.argv[1] if len(sys.argv) > 1 else sys.executable).absolute()
    environment = {**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    parts = [HEADER]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, text in FILES.items():
            (folder / file).write_text(text)
        for title, commands in SECTIONS.items():
            parts += [f"## {title}", *(typed(command, folder, environment) for command in commands)]
    PAGE.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
