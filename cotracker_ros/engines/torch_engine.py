"""PyTorch, on a checkpoint: the reference for the others. Needs the train extra."""

import hashlib
from importlib import metadata as packages
from pathlib import Path

import numpy as np

from cotracker_ros.engines import base
from cotracker_ros.engines.metadata import FORMAT, EngineError, Metadata


class TorchEngine(base.Engine):
    """Runs a step module (see model.step) and keeps its state as tensors on `device`."""

    name = 'torch'

    def __init__(self, step, metadata: Metadata, device: str, cameras: int, slots: int,
                 threads: int) -> None:
        import torch
        super().__init__(metadata, cameras, slots, threads or base.default_threads())
        if device == 'cuda' and not torch.cuda.is_available():
            raise EngineError('torch sees no CUDA device here; use engine torch')
        torch.set_num_threads(self.threads)
        self.device = device
        self.precision = 'f32'
        self._torch = torch
        self._step_module = step.eval().to(device)
        self.reset()

    def _step(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        torch = self._torch
        with torch.inference_mode():
            tensors = [torch.tensor(inputs[n], device=self.device) for n in self._inputs]
            try:
                outputs, self._state = self._step_module(*tensors, self._state)
            except RuntimeError as error:
                raise EngineError(f'torch failed in a step: {error}') from error
            return {n: outputs[n].float().cpu().numpy() for n in base.OUTPUTS}

    def reset(self) -> None:
        """Forget all frames and points."""
        state = self._step_module.initial_state(self.cameras, self.slots)
        self._state = {n: v.to(self.device) for n, v in state.items()}


def load_checkpoint_engine(path: Path, device: str, cameras: int, slots: int,
                           threads: int) -> TorchEngine:
    """The step of a checkpoint with the iterations it was made for (published ones: 1)."""
    try:
        import torch  # noqa: F401

        from cotracker_ros.model import load_checkpoint
        from cotracker_ros.model.step import build_step
    except ImportError:
        raise EngineError('the engine torch is not installed: '
                          'pip install cotracker_ros[train]') from None
    try:
        model = load_checkpoint(path)
        step = build_step(model, getattr(model.config, 'iterations', 1))
    except ValueError as error:
        raise EngineError(f'{path}: {error}') from error
    return TorchEngine(step, Metadata(**describe(model, step)), device, cameras, slots, threads)


def describe(model, step, precision: str = 'fp32', provenance: str = '') -> dict:
    """Metadata of a model and its step, as an exported file carries it."""
    name = getattr(model.config, 'name', 'realtime')
    try:
        version = packages.version('cotracker_ros')
    except packages.PackageNotFoundError:  # run from a source tree
        version = '0'
    return {
        'format': FORMAT, 'model': name, 'version': version, 'height': step.image_size[0],
        'width': step.image_size[1], 'window': step.window, 'iterations': step.iterations,
        'precision': precision, 'licence': 'Apache-2.0' if name == 'realtime' else 'CC-BY-NC-4.0',
        'weights_sha256': weights_sha256(model), 'provenance': provenance,
    }


def weights_sha256(model) -> str:
    """Hash of all weights with their names, whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()
