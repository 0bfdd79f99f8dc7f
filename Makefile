# What there is to do; each target installs what it needs from Debian's packages.
STATIC := x86_64-unknown-linux-gnu
BINARY := target/$(STATIC)/release/smartup

.PHONY: all setup build test lint unit lab-test long-test demo bench soak deny clean-lab

all: $(BINARY)

# glibc linked in: the binary runs on any distribution; names are resolved without glibc's NSS
$(BINARY): FORCE
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --target $(STATIC) -p smartup
FORCE:

setup:
	integration/setup

# the programs that the lab's hosts run; smartup static, or it could not be an image
build:
	cargo build --workspace --lib --bin k3s --bin lab --bin manager --bin bench --bin soak
	cargo rustc -p smartup --bin smartup -- -C target-feature=+crt-static -C strip=symbols

test: setup lint unit lab-test

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

unit:
	cargo test --workspace --exclude integration

lab-test: build
	integration/run-tests

# what takes many minutes by itself
long-test: setup build
	integration/run-tests --long

demo: setup build
	integration/demo $(if $(KEEP),--keep)

bench: setup build $(BINARY)
	target/debug/bench

# ARGS="--seed 7 --minutes 60 --faults power,cut"
soak: setup build
	target/debug/soak $(ARGS)

deny:
	cargo deny check bans licenses sources

clean-lab: build
	target/debug/lab gc
