//go:build !linux

package conn

// withLoops and withRing are nil: connections have goroutines here.
var withLoops, withRing engine
