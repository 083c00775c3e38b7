//go:build !linux

package conn

// These are nil: connections have goroutines here.
var withLoops, withRing, withTLS engine
