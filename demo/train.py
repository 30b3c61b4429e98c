"""Train a demo model by its recipe, with EMA and checkpoints.

    python -m demo.data && python -m demo.train --start demo/emoji32.safetensors --hours 10
    python -m demo.data avatars32 && python -m demo.train avatars32 --lr 1e-3 --ema 0.999 --hours 2
    python -m demo.train avatars32 --decay 1500    # finish: the rate falls to 0 over the next 1,500 steps

The learning rate is constant until --decay, so training can continue for any time. Every --every steps the
full state is written to ~/.cache/amed (the pack never loads it), and the EMA weights, which are the model, to
--out in half precision. The run may be interrupted at any time; the same command resumes it.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .recipe import MODULES, recipe

FOLDER = Path.home() / ".cache" / "amed"


def save_half(state: dict[str, torch.Tensor], file: Path) -> None:
    """Save a network's weights in half precision, through a temporary file, so `file` is never incomplete."""
    part = file.with_suffix(".part")
    save_file({k: v.half().contiguous() for k, v in state.items()}, part)
    os.replace(part, file)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.train", description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="emoji32", choices=list(MODULES))
    parser.add_argument("--hours", type=float, default=math.inf, help="stop after this many hours in all")
    parser.add_argument(
        "--decay", type=int, help="finish: the rate falls to 0 over this many steps from here"
    )
    parser.add_argument("--start", type=Path, help="initial weights where no checkpoint exists yet")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--warmup", type=int, default=500, help="steps over which the rate rises to --lr")
    parser.add_argument("--ema", type=float, default=0.9998)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    parser.add_argument("--fp32", action="store_true", help="no bfloat16: faster on a CPU without it")
    parser.add_argument("--data", type=Path, help="file of the data set, if not the recipe's")
    parser.add_argument("--checkpoint", type=Path, help="default: MODEL.train.pt in ~/.cache/amed")
    parser.add_argument("--out", type=Path, help="default: MODEL.safetensors in ~/.cache/amed")
    args = parser.parse_args(argv)
    task = recipe(args.model)
    checkpoint = args.checkpoint or FOLDER / f"{task.name}.train.pt"
    out = args.out or FOLDER / task.weights.name

    images, labels = task.load(args.data or task.data)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    net = task.network(args.dropout).to(memory_format=torch.channels_last)
    if args.start:
        net.load_state_dict(load_file(args.start))
    ema = {k: v.clone() for k, v in net.state_dict().items()}
    optimiser = torch.optim.Adam(net.parameters(), lr=args.lr, betas=(0.9, 0.99))
    step, seconds, log, decay_start = 0, 0.0, [], None
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True)
        net.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        generator.set_state(saved["generator"])
        ema, step, seconds, log = saved["ema"], saved["step"], saved["seconds"], saved["log"]
        decay_start, args.decay = saved["decaying"] or (None, args.decay)
        print(f"resumed at step {step}", flush=True)
    print(f"{sum(p.numel() for p in net.parameters()):,} parameters, {len(images)} images", flush=True)
    forward = torch.compile(net) if args.compile else net

    if args.decay and decay_start is None:
        decay_start = step
    total, count, start = 0.0, 0, time.time()
    while decay_start is None or step < decay_start + args.decay:
        if seconds + time.time() - start > 3600 * args.hours:
            break
        rate_share = 1.0 if decay_start is None else 1 - (step - decay_start) / args.decay
        for group in optimiser.param_groups:
            group["lr"] = args.lr * min(1, (step + 1) / args.warmup) * rate_share
        pick = torch.randint(len(images), (args.batch,), generator=generator)
        x, label = task.augment(images[pick], labels[pick], generator)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=not args.fp32):
            loss = task.loss(forward, x, label, generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        step, count, total = step + 1, count + 1, total + loss.item()
        decay = min(args.ema, (1 + step) / (10 + step))
        state = net.state_dict()
        torch._foreach_lerp_(list(ema.values()), [state[k] for k in ema], 1 - decay)
        if step % args.every == 0 or (decay_start is not None and step == decay_start + args.decay):
            seconds, start = seconds + time.time() - start, time.time()
            log.append({"step": step, "loss": total / count, "seconds": seconds})
            print(json.dumps(log[-1]), flush=True)
            total, count = 0.0, 0
            part = checkpoint.with_suffix(".part")
            torch.save(
                {
                    "model": net.state_dict(),
                    "ema": ema,
                    "optimiser": optimiser.state_dict(),
                    "step": step,
                    "generator": generator.get_state(),
                    "seconds": seconds,
                    "log": log,
                    "decaying": None if decay_start is None else (decay_start, args.decay),
                },
                part,
            )
            os.replace(part, checkpoint)
            save_half(ema, out)


if __name__ == "__main__":
    main()
