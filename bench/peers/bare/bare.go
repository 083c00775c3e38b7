// Package bare has two servers that do nothing but write to subscribers, as yardsticks for those that do more:
// limit, in C, is what a server can cost at the least on the machine at hand, and the bare Go loop is what one can in Go.
// Both speak the protocol written at the top of c/limit.c, on 127.0.0.1, with one thread and one epoll.
//
// They bound nothing and check nothing: they are for benchmarks only.
package bare

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

//go:embed c/limit.c
var limitC []byte

// ErrNoCompiler says that limit cannot be built here.
var ErrNoCompiler = errors.New("there is no C compiler (cc) for the limit server: apt-get install gcc libc6-dev")

// BuildLimit compiles limit into dir and returns the path of its binary.
func BuildLimit(ctx context.Context, dir string) (string, error) {
	cc, err := exec.LookPath("cc")
	if err != nil {
		return "", ErrNoCompiler
	}
	source, binary := filepath.Join(dir, "limit.c"), filepath.Join(dir, "limit")
	if err := os.WriteFile(source, limitC, 0o644); err != nil {
		return "", err
	}
	out, err := exec.CommandContext(ctx, cc, "-O2", "-std=c11", "-Wall", "-Wextra", "-o", binary, source).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("compile limit.c: %w\n%s", err, out)
	}
	return binary, nil
}
