#!/usr/bin/env bash
# Passes (or does not pass) every test: style, unit and property tests, documents, end to end.
# usage: test.sh [STEP ...]     steps: setup fmt clippy cargo docs build e2e      (default: all, in this order)
# Ends with "N passed, N failed" lines and exit code 0 only if nothing failed.
set -uo pipefail
top=$(cd "$(dirname "$0")/.." && pwd) && cd "$top" || exit 1
export PATH=$PATH:/usr/sbin:/sbin CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
steps_passed=0 failed=() tests_passed=0 tests_failed=0

setup() { scripts/setup.sh; }
fmt() { cargo fmt --all --check; }
clippy() { cargo clippy --quiet --workspace --all-targets --locked -- -D warnings; }
docs() { RUSTDOCFLAGS="-D warnings" cargo doc --quiet --workspace --no-deps --locked; }
# All targets, because without the tests' dependencies others have fewer features: everything would be built again.
build() { cargo build --quiet --workspace --all-targets --locked; }
e2e() { tests/run.sh; }

# Prints what the runner prints, and adds its counts to the totals.
cargo_tests() {
  local status=0
  if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --workspace --locked --no-fail-fast --no-tests pass --hide-progress-bar --status-level slow 2>&1 | tee "$log"
    status=${PIPESTATUS[0]}
    count 's/^ *Summary .* \([0-9]*\) passed.*/\1/p' 's/^ *Summary .* \([0-9]*\) failed.*/\1/p'
    cargo test --quiet --workspace --locked --doc 2>&1 | tee "$log"
  else
    cargo test --quiet --workspace --locked --no-fail-fast 2>&1 | tee "$log"
  fi
  [ "${PIPESTATUS[0]}" -eq 0 ] || status=1
  count 's/^test result: .* \([0-9]*\) passed;.*/\1/p' 's/^test result: .* \([0-9]*\) failed;.*/\1/p'
  return "$status"
}

count() {
  local n
  for n in $(sed -n "$1" "$log"); do tests_passed=$((tests_passed + n)); done
  for n in $(sed -n "$2" "$log"); do tests_failed=$((tests_failed + n)); done
}

step() {
  local name=$1 begin=$SECONDS status=0
  shift
  printf '== %s\n' "$name"
  "$@" || status=$?
  printf '== %s: %s, %d s\n' "$name" "$([ "$status" -eq 0 ] && echo ok || echo FAILED)" "$((SECONDS - begin))"
  if [ "$status" -eq 0 ]; then steps_passed=$((steps_passed + 1)); else failed+=("$name"); fi
  return "$status"
}

[ "$#" -gt 0 ] || set -- setup fmt clippy cargo docs build e2e
for name in "$@"; do
  case $name in
    setup | build) step "$name" "$name" || break ;; # nothing after these can run without them
    cargo) step "$name" cargo_tests ;;
    fmt | clippy | docs | e2e) step "$name" "$name" ;;
    *) printf 'no step %s\n' "$name" >&2; exit 2 ;;
  esac
done

printf '%d s in all\n' "$SECONDS"
printf 'cargo tests: %d passed, %d failed\n' "$tests_passed" "$tests_failed"
printf 'steps: %d passed, %d failed%s\n' "$steps_passed" "${#failed[@]}" "${failed[*]:+ (${failed[*]})}"
[ "${#failed[@]}" -eq 0 ]
