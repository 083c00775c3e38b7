package node

import "debug/elf"

// runningBuild names the binary that runs, so that what folds write is compared between equal ones only. Version and
// commit are not enough: a build from changed sources has those of the sources that were changed. The linker's
// build id is of the content.
func runningBuild(b Build) string {
	name := b.Version + " " + b.Commit
	f, err := elf.Open("/proc/self/exe") // the file that runs, even when another has taken its name
	if err != nil {
		return name // not Linux
	}
	defer f.Close() //nolint:errcheck // only read
	if s := f.Section(".note.go.buildid"); s != nil {
		if note, err := s.Data(); err == nil {
			name += " " + string(note)
		}
	}
	return name
}
