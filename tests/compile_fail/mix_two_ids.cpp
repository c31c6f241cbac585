// SPDX-License-Identifier: MIT
// floor: base. A slot is not a block, and neither is a number.
#include "base/ids.h"

namespace tokenspeed {

bool same(BlockId block, SlotId slot) {
#ifdef WRONG
    return block == slot;
#else
    return block == BlockId{slot.value};
#endif
}

}  // namespace tokenspeed
