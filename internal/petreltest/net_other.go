//go:build !linux

package petreltest

import (
	"errors"
	"os/exec"
)

var errNoNamespaces = errors.New("there are no network namespaces on this system")

func onThread(fn func()) { go fn() }

func (h *Host) setUp() error { return errNoNamespaces }

func (h *Host) enter() error { return errNoNamespaces }

func (h *Host) leave() {}

// Mount is not called without a Net.
func (h *Host) Mount(string, int64) error { return errNoNamespaces }

// Start is not called without a Net.
func (h *Host) Start(*exec.Cmd) error { return errNoNamespaces }
