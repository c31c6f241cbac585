// SPDX-License-Identifier: MIT
// floor: kv. What is on its way between tiers has one owner: it is moved, never copied.
#include <utility>

#include "kv/transfer.h"

namespace tokenspeed {

Transfer take(Transfer& transfer) {
#ifdef WRONG
    return transfer;
#else
    return std::move(transfer);
#endif
}

}  // namespace tokenspeed
