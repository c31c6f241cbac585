// SPDX-License-Identifier: MIT
// floor: kv. A table's writable blocks are those of its tail; the shared path yields no lease to write with.
#include "kv/table.h"

namespace tokenspeed {

BlockLease writable(PathLease& path, BlockList& tail) {
#ifdef WRONG
    return path.pop_front();
#else
    (void)path;
    return tail.pop_front();
#endif
}

}  // namespace tokenspeed
