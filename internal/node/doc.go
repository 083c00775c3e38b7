// Package node assembles a Petrel process: it reads the configuration, takes the data
// folder, builds every part in order, starts them, drains, and stops them in reverse.
// It is the only package that knows everybody.
//
// # Invariants
//
//   - Nothing in the data folder is opened before its lock is held, and nothing is left
//     open when the lock is let go.
//   - The public listener opens last and closes first: no request meets a half-built node.
//   - The admin listener opens first and closes last, with its own server and limits:
//     health can be asked while everything else is slow, full or stopping.
//   - /readyz says yes only after a Barrier, that is, when everything once acknowledged can be read here.
//   - A part that fails for good takes the node down with a sentence and an exit code; it is never
//     logged and forgotten.
package node
