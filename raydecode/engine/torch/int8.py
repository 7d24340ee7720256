"""Dense layers with 8-bit weights (`engine.options.weights: int8`): another model, nearly as good, much less to read.

    W[o, :] = s[o] * integers in -127..127,   s[o] = max |W[o, :]| / 127            once, at load
    x = r * (high + low / 126) / 63,          r = max |x|, high and low integers in -63..63,   per row, in the call
    y[o] = s[o] * r / 63 * (W high + W low / 126) + b[o]

Both products are sums of integers below 2^31, which no order of addition can change: the bits of a row do not depend on
the batch, by arithmetic. Activations have 14 bits because 7 are too few, and two rows of 7 bits cost less than one of
16: fbgemm multiplies bytes, and 7 bits cannot overflow its 16-bit pair sums on processors without VNNI.

SmolLM2-135M on 1,024 tokens of prompts: loss 3.5593 in float32, 3.5621 here (3.5619 with the weights alone rounded;
3.688 with 7-bit activations); the likeliest token is the same at 95.5 % of the positions.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from raydecode.errors import Refused

PRODUCT = "linear_with_input_q_dq_qweight_dq_output_fp32"
WIDEST = (1 << 31) // (127 * 127)
"""Most inputs of a layer whose sums fit 32 bits: 133,144."""


def check_int8() -> None:
    """Raise Refused where torch was built without the kernels."""
    there = "fbgemm" in torch.backends.quantized.supported_engines and hasattr(torch.ops.quantized, PRODUCT)
    if not there:
        raise Refused(
            "weights: int8 needs torch's fbgemm kernels, which this build does not have (they are for x86)",
            field="engine.options.weights", value="int8", nearest="full",
        )  # fmt: skip


class Int8Linear(nn.Module):
    """y = x W^T + b, see above; x of any dtype, y of the same. What is not finite makes its whole row so."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        assert weight.shape[1] <= WIDEST
        weight = weight.detach().float()
        scale = (weight.abs().amax(1) / 127).clamp_min(1e-30).double()
        zero = torch.zeros(len(scale), dtype=torch.int64)
        before, torch.backends.quantized.engine = torch.backends.quantized.engine, "fbgemm"
        try:
            with warnings.catch_warnings():  # torch means to remove tensors of quantized type; `check_int8` will see it
                warnings.simplefilter("ignore", UserWarning)
                whole = torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)
            self.packed = torch.ops.quantized.linear_prepack(whole, None)
        finally:
            torch.backends.quantized.engine = before
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        x_MD = x.flatten(0, -2).float()
        largest_M1 = torch.linalg.vector_norm(x_MD, torch.inf, -1, keepdim=True).clamp_min_(1e-30)
        scaled = x_MD * (63 / largest_M1)
        high = scaled.round()
        low = scaled.sub_(high).mul_(126)
        both = getattr(torch.ops.quantized, PRODUCT)(torch.cat([high, low]), 1.0, 64, self.packed)
        y = torch.add(both[: len(x_MD)], both[len(x_MD) :], alpha=1 / 126).mul_(largest_M1 / 63)
        if self.bias is not None:
            y += self.bias
        return y.to(x.dtype).unflatten(0, x.shape[:-1])
