package main

import (
	"fmt"
	"runtime/debug"

	"github.com/petrel-chat/petrel/internal/node"
)

// version is set by the release build: -ldflags "-X main.version=v0.2.0". The linker alone writes it.
var version string

type versionCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

func (c *versionCmd) Run(con *console) error {
	b := build()
	if c.JSON {
		return printJSON(con.out, b)
	}
	_, err := fmt.Fprintf(con.out, "petrel %s\ncommit %s\ngo %s\nfeature level %d\n", b.Version, b.Commit, b.Go, b.FeatureLevel)
	return err
}

// build says what this binary was made of.
func build() node.Build {
	b := node.Build{Version: version, Commit: "unknown", FeatureLevel: node.FeatureLevel}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	b.Go = info.GoVersion
	if b.Version == "" {
		b.Version = info.Main.Version
	}
	dirty := false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.modified":
			dirty = s.Value == "true"
		}
	}
	if dirty {
		b.Commit += " (with changes)"
	}
	return b
}
