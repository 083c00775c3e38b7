//go:build !linux

package main

import (
	"fmt"
	"os"
)

// main says why not: it counts on epoll and /proc.
func main() {
	fmt.Fprintln(os.Stderr, "peers: the benchmark against peers runs on Linux only")
	os.Exit(1) //nolint:forbidigo // this is main
}
