// Checks of weight_only without Python, for sanitizers.
#pragma once

namespace tesseral {

// Returns the number of calls with a wrong result, each printed to stderr.
int check_weight_only();

}  // namespace tesseral
