"""A barrier over all programs of one launch, which must all run at once (a cooperative launch).

`counter` is one int32 that only grows: a program that has done its part adds one, and waits until all of them have. What
programs stored before they left is seen by every program that has met, through any kind of load. Between `leave` and `meet`
a program may do what depends on nobody. One thread adds and looks; the interpreter knows no assembly, so there
(INTERPRETED, a single program) the same is done in Triton's own operations.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def leave(counter, INTERPRETED: tl.constexpr):
    """This program's stores are done."""
    tl.debug_barrier()  # every thread's stores come before the one thread that counts
    if INTERPRETED:
        tl.atomic_add(counter, 1, sem="release")
    else:
        tl.inline_asm_elementwise(
            """
            {
            .reg .pred first;
            .reg .u32 thread;
            mov.u32 thread, %tid.x;
            setp.eq.u32 first, thread, 0;
            @first red.release.gpu.global.add.u32 [$1], 1;
            mov.u32 $0, 0;
            }
            """,
            "=r,l",
            [counter.to(tl.int64, bitcast=True)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def meet(counter, target, INTERPRETED: tl.constexpr):
    """Wait until `target` have left."""
    if INTERPRETED:
        while tl.atomic_add(counter, 0, sem="acquire") < target:
            pass
    else:
        tl.inline_asm_elementwise(
            """
            {
            .reg .pred again;
            .reg .u32 seen;
            mov.u32 seen, %tid.x;
            setp.ne.u32 again, seen, 0;
            @again bra met;
            look:
            ld.acquire.gpu.global.u32 seen, [$1];
            setp.lt.u32 again, seen, $2;
            @again bra look;
            met:
            mov.u32 $0, 0;
            }
            """,
            "=r,l,r",
            [counter.to(tl.int64, bitcast=True), target],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    tl.debug_barrier()
