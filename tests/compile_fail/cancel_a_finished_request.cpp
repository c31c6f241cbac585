// SPDX-License-Identifier: MIT
// floor: request. A finished request accepts nothing: it cannot finish twice (I8).
#include <utility>

#include "request/transitions.h"

namespace tokenspeed {

#ifdef WRONG
Finished again(Finished&& request) { return on(std::move(request), Cancel{}); }
#else
Finished once(Decoding&& request) { return on(std::move(request), Cancel{}); }
#endif

}  // namespace tokenspeed
