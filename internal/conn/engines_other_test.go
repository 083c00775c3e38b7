//go:build !linux

package conn

// withLoops is nil: connections have goroutines here.
var withLoops engine
