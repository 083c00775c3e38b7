//go:build !race

package petreltest

// buildFlags of the binary under test.
const buildFlags = "-race=false"
