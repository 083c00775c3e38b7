package job

import (
	"archive/zip"
	"bytes"
	_ "embed"
	"io"
	"sync"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// zoneinfo is IANA's list as Go 1.26.8 brings it (lib/time/zoneinfo.zip; its data are in the public domain). It is a copy, because package time
// prefers the list of the machine, and two nodes of a cell shall not disagree about when something is due.
//
//go:embed zoneinfo.zip
var zoneinfo []byte

// zones are the zones of the list by their names. Each is read when it is asked for first.
var zones = sync.OnceValue(func() map[string]func() (*time.Location, error) {
	list, err := zip.NewReader(bytes.NewReader(zoneinfo), int64(len(zoneinfo)))
	if err != nil {
		panic(err) // it is part of the binary: every test shows it
	}
	all := make(map[string]func() (*time.Location, error), len(list.File))
	for _, f := range list.File {
		if !f.FileInfo().IsDir() {
			all[f.Name] = sync.OnceValues(func() (*time.Location, error) { return readZone(f) })
		}
	}
	return all
})

func readZone(f *zip.File) (*time.Location, error) {
	r, err := f.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	return time.LoadLocationFromTZData(f.Name, data)
}

// loadZone knows the names of IANA's list, and no other: on every node the same.
func loadZone(name string) (*time.Location, error) {
	if name == "" || name == "UTC" {
		return time.UTC, nil
	}
	if zone := zones()[name]; zone != nil {
		return zone()
	}
	return nil, petrel.Errorf(petrel.CodeInvalidField, "There is no time zone %.40q. Use a name like Europe/Berlin, or UTC.", name)
}
