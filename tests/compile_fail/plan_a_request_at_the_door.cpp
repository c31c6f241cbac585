// SPDX-License-Identifier: MIT
// floor: request. A request whose session is not admitted cannot be given KV; it enters first.
#include <utility>

#include "request/transitions.h"

namespace tokenspeed {

Prefilling begin(AtDoor&& request, Admit admit) {
#ifdef WRONG
    return on(std::move(request), std::move(admit));
#else
    return on(on(std::move(request), Enter{}), std::move(admit));
#endif
}

}  // namespace tokenspeed
