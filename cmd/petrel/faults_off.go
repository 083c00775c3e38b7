//go:build !faults

package main

import "github.com/petrel-chat/petrel/internal/node"

// faults are none in a build for production.
func faults() *node.Faults { return nil }
