// SPDX-License-Identifier: MIT
// floor: kv. Only a pool makes a lease.
#include <optional>

#include "kv/pool.h"

namespace tokenspeed {

std::optional<BlockLease> lease(Pool& pool) {
#ifdef WRONG
    return BlockLease(pool, BlockId{0});
#else
    return pool.try_lease();
#endif
}

}  // namespace tokenspeed
