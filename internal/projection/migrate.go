package projection

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Module is one package's part of the schema.
type Module struct {
	// Name is recorded with every step: never rename.
	Name string
	// Migrations are SQL scripts, each run once, in order, all missing ones in one transaction.
	// Never change or remove one that was released; append. No comment after the last statement.
	Migrations []string
	// Local names tables that are not the same on every replica: a scrub leaves them out.
	Local []string
}

// self is the projection's own schema. It comes before all others.
var self = Module{Name: "projection", Migrations: []string{`
CREATE TABLE projection_applied (
	id     INTEGER PRIMARY KEY CHECK (id = 1),
	idx    INTEGER NOT NULL,
	hash   BLOB    NOT NULL,
	mark   INTEGER NOT NULL,
	digest BLOB    NOT NULL,
	epoch  TEXT    NOT NULL
) STRICT;
INSERT INTO projection_applied VALUES (1, 0, zeroblob(32), 0, zeroblob(32), '');
`}}

const (
	createMigrations = `CREATE TABLE IF NOT EXISTS projection_migration (
	module TEXT NOT NULL, step INTEGER NOT NULL, PRIMARY KEY (module, step)) STRICT, WITHOUT ROWID`
	selectMigrations = `SELECT module, max(step) FROM projection_migration GROUP BY module`
	insertMigration  = `INSERT INTO projection_migration (module, step) VALUES (?, ?)`
	countTables      = `SELECT count(*) FROM sqlite_schema`
	hasMigrations    = `SELECT count(*) FROM sqlite_schema WHERE name = 'projection_migration'`
	selectApplied    = `SELECT idx, hash, mark, digest, epoch FROM projection_applied WHERE id = 1`
	updateApplied    = `UPDATE projection_applied SET idx = ?, hash = ?, mark = ?, digest = ?, epoch = ? WHERE id = 1`
)

func checkModules(modules []Module) error {
	seen := map[string]bool{self.Name: true}
	for _, m := range modules {
		if m.Name == "" || seen[m.Name] {
			return fmt.Errorf("projection: module name %q is empty or used twice", m.Name)
		}
		seen[m.Name] = true
	}
	return nil
}

// openChecked opens the file for writing, verifies it, and migrates it in one transaction.
// A file that is absent, empty or without a single table is new.
func openChecked(ctx context.Context, path string, modules []Module, cacheBytes int, sealed bool) (_ *conn, applied petrel.Applied, err error) {
	if err := checkHeader(path); err != nil {
		return nil, applied, err
	}
	c, err := openWriter(path, cacheBytes)
	if err != nil {
		return nil, applied, err
	}
	if applied, err = prepare(ctx, c, modules, sealed); err != nil {
		return nil, applied, errors.Join(err, c.close())
	}
	return c, applied, nil
}

// prepare verifies what c is open on, unless it is new, and migrates it.
func prepare(ctx context.Context, c *conn, modules []Module, sealed bool) (applied petrel.Applied, err error) {
	c.c.SetInterrupt(ctx.Done())
	defer c.c.SetInterrupt(nil)
	tables, err := c.text(countTables)
	if err != nil {
		return applied, fmt.Errorf("read the schema of the projection: %w", err)
	}
	if tables != "0" {
		if err := check(c, sealed); err != nil {
			return applied, err
		}
	}
	tx := &Tx{Reader: Reader{c: c}}
	err = tx.run(func(tx *Tx) error { return migrate(tx, modules) })
	if err != nil {
		return applied, fmt.Errorf("migrate the projection: %w", err)
	}
	return (&Reader{c: c}).Applied()
}

// magic opens every SQLite file.
const magic = "SQLite format 3\x00"

func checkHeader(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return wrapOS("open the projection", err)
	}
	defer f.Close() //nolint:errcheck // only read
	head := make([]byte, len(magic))
	n, err := io.ReadFull(f, head)
	switch {
	case errors.Is(err, io.EOF): // empty: made, but nothing was ever written
		return nil
	case err != nil && !errors.Is(err, io.ErrUnexpectedEOF):
		return wrapOS("read the projection", err)
	case string(head[:n]) != magic:
		return fmt.Errorf("%w: %s does not begin as an SQLite file", ErrUnreadable, path)
	}
	return nil
}

// check verifies pages and rows, unless the seal did, and that the file is a projection.
func check(c *conn, sealed bool) error {
	if !sealed {
		verdict, err := c.text("PRAGMA quick_check(1)")
		if err != nil {
			return unreadable("check the projection", err)
		}
		if verdict != "ok" {
			return fmt.Errorf("%w: quick_check says %q", ErrUnreadable, verdict)
		}
	}
	if n, err := c.text(hasMigrations); err != nil || n != "1" {
		return errors.Join(fmt.Errorf("%w: the table of migrations is missing", ErrUnreadable), err)
	}
	if _, err := (&Reader{c: c}).Applied(); err != nil {
		return unreadable("read the applied row", err)
	}
	return nil
}

// unreadable marks err as damage unless it is one of the things that damage is not.
func unreadable(what string, err error) error {
	if errors.Is(err, ErrUnreadable) || errors.Is(err, petrel.ErrDiskFull) || isIOErr(err) || isInterrupt(err) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w: %w", what, ErrUnreadable, err)
}

// migrate runs what the file has not seen. It refuses a file that has seen more than this build knows,
// before it changes anything.
func migrate(tx *Tx, modules []Module) error {
	if err := tx.exec(createMigrations); err != nil {
		return err
	}
	done := map[string]int{}
	err := tx.Query(selectMigrations, func(r *Row) error {
		done[r.Text(0)] = int(r.Int(1))
		return nil
	})
	if err != nil {
		return err
	}
	all := append([]Module{self}, modules...)
	if err := checkKnown(done, all); err != nil {
		return err
	}
	for _, m := range all {
		for i := done[m.Name]; i < len(m.Migrations); i++ {
			if err := tx.script(m.Migrations[i]); err != nil {
				return fmt.Errorf("module %s, step %d: %w", m.Name, i+1, err)
			}
			if _, err := tx.Exec(insertMigration, m.Name, i+1); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkKnown(done map[string]int, modules []Module) error {
	known := map[string]int{}
	for _, m := range modules {
		known[m.Name] = len(m.Migrations)
	}
	for name, step := range done {
		if step > known[name] {
			return fmt.Errorf("%w: module %s is at step %d, this build knows %d", ErrNewerSchema, name, step, known[name])
		}
	}
	return nil
}

// script runs every statement of sql.
func (t *Tx) script(sql string) error {
	for sql = strings.TrimSpace(sql); sql != ""; {
		st, rest, err := t.c.c.PrepareTransient(sql)
		if err != nil {
			return t.fail(sql, err)
		}
		_, err = st.Step()
		err = errors.Join(err, st.Finalize())
		if err != nil {
			return t.fail(sql, err)
		}
		sql = strings.TrimSpace(sql[len(sql)-rest:])
	}
	return nil
}

func scanApplied(row *Row) (petrel.Applied, error) {
	hash, digest := row.Bytes(1), row.Bytes(3)
	if len(hash) != len(petrel.Hash{}) || len(digest) != len(petrel.Hash{}) {
		return petrel.Applied{}, fmt.Errorf("%w: the applied row holds no hash", ErrUnreadable)
	}
	return petrel.Applied{
		Index: row.Uint(0), Hash: petrel.Hash(hash), Mark: row.Uint(2),
		Digest: petrel.Hash(digest), Epoch: petrel.Epoch(row.Text(4)),
	}, nil
}
