//go:build race

package petreltest

// buildFlags of the binary under test: a test with the race detector watches the server too.
const buildFlags = "-race"
