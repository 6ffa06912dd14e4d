"""PyTorch, on a checkpoint: the reference for the others. Needs the train extra."""

import hashlib
from importlib import metadata as packages
from pathlib import Path

import numpy as np

from cotracker_ros.engines import base, spec
from cotracker_ros.engines.metadata import FORMAT, EngineError, Metadata


class TorchEngine(base.Engine):
    """Runs a step (see model.step) on inputs and a state that stay where they are, so that on a
    GPU the whole of it can be recorded once, as a CUDA graph, and repeated.

    `device` is 'cpu' or 'cuda'.
    """

    name = 'torch'

    def __init__(
        self,
        step,
        metadata: Metadata,
        device: str,
        cameras: int,
        slots: int,
        threads: int,
        recorded: bool = False,
    ) -> None:
        import torch

        super().__init__(metadata, cameras, slots, threads or base.default_threads())
        if device == 'cuda' and not torch.cuda.is_available():
            raise EngineError('torch sees no CUDA device here; use engine torch')
        torch.set_num_threads(self.threads)
        self.device = device
        self.precision = 'f32'
        self._torch = torch
        self._step_module = step.eval().to(device)
        self._carried = step.takes
        self._given = {
            n: torch.tensor(
                np.zeros(self.shape_of(spec.INPUT[n]), spec.INPUT[n].dtype), device=device
            )
            for n in step.takes
        }
        state = step.initial_state(cameras, slots)
        self._state = {n: v.to(device) for n, v in state.items()}
        self._recorded = recorded
        self._graph = self._shown = None

    def _work(self) -> dict:
        """One step on the tensors that stay: state is written in place, of rings one row."""
        outputs, following = self._step_module.advance(self._given, self._state)
        for name in self._step_module.rings:
            row = following.pop(name)
            self._state[name].index_copy_(0, self._state['frame'], row)
        for name, value in following.items():
            self._state[name].copy_(value)
        return outputs

    def _step(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        torch = self._torch
        with torch.inference_mode():
            for name, tensor in self._given.items():
                tensor.copy_(torch.tensor(inputs[name]))
            try:
                if self._graph is not None:
                    self._graph.replay()
                    outputs = self._shown
                else:
                    outputs = self._work()
            except RuntimeError as error:
                raise EngineError(f'torch failed in a step: {error}') from error
            return {n: outputs[n].float().cpu().numpy() for n in spec.OUTPUT_NAMES}

    def warm_up(self) -> None:
        """Run once, which lets the libraries allocate, then record the step where that is asked
        for. Raises EngineError where torch cannot record it.
        """
        super().warm_up()
        if not self._recorded:
            return
        cuda = self._torch.cuda
        try:
            with self._torch.inference_mode(), constants_made_once():
                other = cuda.Stream()  # what is recorded must have run on another stream before
                other.wait_stream(cuda.current_stream())
                with cuda.stream(other):
                    self._work()
                cuda.current_stream().wait_stream(other)
                graph = cuda.CUDAGraph()
                with cuda.graph(graph):
                    self._shown = self._work()
        except RuntimeError as error:
            raise EngineError(
                f'torch could not record this step as a CUDA graph ({error}); '
                'use engine torch:cuda'
            ) from error
        self._graph = graph
        self.reset()

    def reset(self) -> None:
        """Forget all frames and points."""
        for tensor in self._state.values():
            tensor.zero_()

    def close(self) -> None:
        """Free the graph and what it holds."""
        self._graph = self._shown = None


def constants_made_once():
    """A context in which tensors made of the same numbers are one tensor: copying numbers to a
    GPU cannot be recorded, so that a first run must have left them there.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class Constants(TorchFunctionMode):
        def __init__(self):
            super().__init__()
            self.made = {}

        def __torch_function__(self, func, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            if func is torch.tensor:
                numbers, of = args[0], None
            elif func is torch.Tensor.new_tensor:
                numbers, of = args[1], (args[0].dtype, args[0].device)
            else:
                return func(*args, **kwargs)
            key = repr((numbers, of, sorted(kwargs.items(), key=str)))
            if key not in self.made:
                self.made[key] = func(*args, **kwargs)
            return self.made[key]

    return Constants()


def load_checkpoint_engine(
    path: Path, device: str, cameras: int, slots: int, threads: int
) -> TorchEngine:
    """The step of a checkpoint with the iterations it was made for (published ones: 1).

    Raises EngineError without torch, and for a file that is no checkpoint or cannot be streamed.
    """
    try:
        import torch  # noqa: F401

        from cotracker_ros.model import load_checkpoint
        from cotracker_ros.model.registry import build_step
    except ImportError:
        raise EngineError(
            'the engine torch is not installed: pip install torch safetensors'
        ) from None
    try:
        model = load_checkpoint(path)
        step = build_step(model)
    except ValueError as error:
        raise EngineError(f'{path}: {error}') from error
    metadata = Metadata(**step_metadata(model, step))
    recorded = device == 'cuda-graph'
    return TorchEngine(
        step, metadata, 'cuda' if recorded else device, cameras, slots, threads, recorded
    )


def step_metadata(model, step, precision: str = 'fp32', provenance: str = '') -> dict:
    """Metadata of a model and its step, as an exported file carries it; the provenance is that of
    the weights unless given.
    """
    facts = model.facts
    try:
        version = packages.version('cotracker_ros')
    except packages.PackageNotFoundError:  # run from a source tree
        version = '0'
    return {
        'format': FORMAT,
        'model': facts.name,
        'version': version,
        'height': step.image_size[0],
        'width': step.image_size[1],
        'image_scale': facts.image_scale,
        'resize': facts.resize,
        'visible': str(facts.visible),
        'window': step.window,
        'iterations': step.iterations,
        'precision': precision,
        'licence': facts.origin.licence,
        'weights_sha256': weights_sha256(model),
        'provenance': provenance or facts.origin.provenance,
    }


def weights_sha256(model) -> str:
    """Hash of all weights with their names, whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()
