// SPDX-License-Identifier: MIT
// floor: kv. Landing ends a transfer: there is none left to land again.
#include <utility>

#include "kv/transfer.h"

namespace tokenspeed {

PathLease land(Transfer& transfer, PrefixTree& from, PrefixTree& to) {
#ifdef WRONG
    return transfer.land(from, to);
#else
    return std::move(transfer).land(from, to);
#endif
}

}  // namespace tokenspeed
