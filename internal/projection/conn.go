package projection

import (
	"errors"
	"fmt"
	"math"
	"os"
	"reflect"
	"syscall"

	"zombiezen.com/go/sqlite"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// pageSize of new files, in bytes. Measured beside 8192, which folds transactions of 1,000 a sixth
// faster and single ones a quarter slower, with three times the p99.9 (more bytes in the write-ahead
// log). Memory-mapped reading was measured too, as no gain, and turns a read error into a crash.
const pageSize = 4096

// maxStatements is how many prepared statements a connection keeps. SQL is constant in the
// domains, so nothing should come near it; beyond it, statements are prepared for one use.
const maxStatements = 1024

// ioErrShmSize is SQLITE_IOERR_SHMSIZE: there was no room to grow the -shm file. The driver does not name it.
const ioErrShmSize sqlite.ResultCode = 10 | 19<<8

// conn is one SQLite connection with its prepared statements. One goroutine uses it at a time.
type conn struct {
	c     *sqlite.Conn
	stmts map[string]*stmt
}

type stmt struct {
	s    *sqlite.Stmt
	row  Row
	busy bool // a Query is walking its rows
	once bool // finalize after use
}

// openWriter opens path for writing, making it when absent, with mode 0600.
func openWriter(path string, cacheBytes int) (*conn, error) {
	// SQLite gives -wal and -shm the mode of the file; so it is enough to make the file first.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, wrapOS("open the projection", err)
	}
	err = errors.Join(f.Chmod(0o600), f.Close())
	if err != nil {
		return nil, wrapOS("open the projection", err)
	}
	return openConn(path, sqlite.OpenReadWrite|sqlite.OpenCreate, append(writerPragmas(cacheBytes),
		"PRAGMA journal_mode=WAL",
		"PRAGMA synchronous=NORMAL",
		"PRAGMA wal_autocheckpoint=0", // the checkpointer does it
	)...)
}

func openReader(path string, cacheBytes int) (*conn, error) {
	return openConn(path, sqlite.OpenReadOnly, readerPragmas(cacheBytes)...)
}

func writerPragmas(cacheBytes int) []string {
	return []string{
		fmt.Sprintf("PRAGMA page_size=%d", pageSize), // only bites before the first page is written
		"PRAGMA temp_store=MEMORY",
		"PRAGMA cell_size_check=ON",
		"PRAGMA trusted_schema=OFF",
		fmt.Sprintf("PRAGMA cache_size=-%d", cacheBytes>>10),
	}
}

func readerPragmas(cacheBytes int) []string {
	return []string{
		"PRAGMA query_only=ON",
		"PRAGMA temp_store=MEMORY",
		"PRAGMA cell_size_check=ON",
		"PRAGMA trusted_schema=OFF",
		fmt.Sprintf("PRAGMA cache_size=-%d", cacheBytes>>10),
	}
}

func openConn(path string, flags sqlite.OpenFlags, pragmas ...string) (*conn, error) {
	sc, err := sqlite.OpenConn(path, flags)
	if err != nil {
		return nil, fmt.Errorf("open the projection: %w", classify(err))
	}
	c := &conn{c: sc, stmts: map[string]*stmt{}}
	for _, p := range pragmas {
		if err := c.run(p); err != nil {
			return nil, errors.Join(fmt.Errorf("open the projection: %s: %w", p, err), c.close())
		}
	}
	return c, nil
}

func (c *conn) close() error {
	if err := c.c.Close(); err != nil {
		return fmt.Errorf("close a connection of the projection: %w", err)
	}
	return nil
}

// run executes one statement without arguments and drops its rows.
func (c *conn) run(sql string) error {
	st, _, err := c.c.PrepareTransient(sql)
	if err != nil {
		return classify(err)
	}
	defer st.Finalize() //nolint:errcheck // repeats the error of Step
	for {
		more, err := st.Step()
		if err != nil {
			return classify(err)
		}
		if !more {
			return nil
		}
	}
}

// text executes one statement and returns the first column of its first row.
func (c *conn) text(sql string) (string, error) {
	st, _, err := c.c.PrepareTransient(sql)
	if err != nil {
		return "", classify(err)
	}
	defer st.Finalize() //nolint:errcheck // repeats the error of Step
	more, err := st.Step()
	if err != nil || !more {
		return "", classify(err)
	}
	return st.ColumnText(0), nil
}

// begin returns a statement ready to be stepped; the caller hands it to end.
func (c *conn) begin(sql string, args []any) (*stmt, error) {
	st := c.stmts[sql]
	if st == nil || st.busy {
		var err error
		if st, err = c.prepare(sql, st != nil); err != nil {
			return nil, err
		}
	}
	if err := bind(st.s, args); err != nil {
		c.end(st)
		return nil, fmt.Errorf("%w in %q", err, sql)
	}
	st.busy = true
	return st, nil
}

func (c *conn) prepare(sql string, again bool) (*stmt, error) {
	if again || len(c.stmts) >= maxStatements {
		s, rest, err := c.c.PrepareTransient(sql)
		if err == nil && rest != 0 {
			err = errors.Join(errors.New("more than one statement"), s.Finalize())
		}
		if err != nil {
			return nil, fmt.Errorf("prepare %q: %w", sql, classify(err))
		}
		return &stmt{s: s, row: Row{s}, once: true}, nil
	}
	s, err := c.c.Prepare(sql)
	if err != nil {
		return nil, classify(err)
	}
	st := &stmt{s: s, row: Row{s}}
	c.stmts[sql] = st
	return st, nil
}

func (c *conn) end(st *stmt) {
	st.busy = false
	if st.once {
		_ = st.s.Finalize() // repeats the error of the last Step
		return
	}
	_ = st.s.Reset() // repeats the error of the last Step
}

// bind sets every parameter of s. The common types go through a type switch; named types that
// are not of package petrel take the slow way by reflection.
func bind(s *sqlite.Stmt, args []any) error {
	if n := s.BindParamCount(); n != len(args) {
		return fmt.Errorf("projection: %d arguments for %d parameters", len(args), n)
	}
	for i, a := range args {
		p := i + 1
		switch v := a.(type) {
		case nil:
			s.BindNull(p)
		case string:
			s.BindText(p, v)
		case int64:
			s.BindInt64(p, v)
		case uint64:
			if v > math.MaxInt64 {
				return fmt.Errorf("projection: argument %d is over 2^63", p)
			}
			s.BindInt64(p, int64(v))
		case []byte:
			bindBytes(s, p, v)
		case petrel.AppID:
			s.BindText(p, string(v))
		case petrel.UserID:
			s.BindText(p, string(v))
		case petrel.RoomID:
			s.BindText(p, string(v))
		case petrel.MessageID:
			s.BindText(p, string(v))
		case petrel.CommandID:
			s.BindText(p, string(v))
		case petrel.RequestID:
			s.BindText(p, string(v))
		case petrel.Epoch:
			s.BindText(p, string(v))
		case petrel.ActorKind:
			s.BindInt64(p, int64(v))
		case petrel.EntryID:
			s.BindBytes(p, v[:])
		case petrel.Hash:
			s.BindBytes(p, v[:])
		case int:
			s.BindInt64(p, int64(v))
		case bool:
			s.BindBool(p, v)
		default:
			if err := bindSlow(s, p, reflect.ValueOf(a)); err != nil {
				return err
			}
		}
	}
	return nil
}

// bindBytes keeps nil and empty apart: nil is NULL.
func bindBytes(s *sqlite.Stmt, p int, v []byte) {
	if v == nil {
		s.BindNull(p)
		return
	}
	s.BindBytes(p, v)
}

func bindSlow(s *sqlite.Stmt, p int, v reflect.Value) error {
	switch v.Kind() {
	case reflect.String:
		s.BindText(p, v.String())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		s.BindInt64(p, v.Int())
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if v.Uint() > math.MaxInt64 {
			return fmt.Errorf("projection: argument %d is over 2^63", p)
		}
		s.BindInt64(p, int64(v.Uint()))
	case reflect.Bool:
		s.BindBool(p, v.Bool())
	case reflect.Slice:
		if v.Type().Elem().Kind() != reflect.Uint8 {
			return fmt.Errorf("projection: argument %d has type %s, which has no place in a row", p, v.Type())
		}
		bindBytes(s, p, v.Bytes())
	default: // floats too: a fold may not use them
		return fmt.Errorf("projection: argument %d has type %s, which has no place in a row", p, v.Type())
	}
	return nil
}

// classify wraps what SQLite says in the error that callers act on.
func classify(err error) error {
	if err == nil {
		return nil
	}
	switch code := sqlite.ErrCode(err); {
	case code.ToPrimary() == sqlite.ResultFull, code == ioErrShmSize:
		return fmt.Errorf("%w: %w", petrel.ErrDiskFull, err)
	case code.ToPrimary() == sqlite.ResultCorrupt, code.ToPrimary() == sqlite.ResultNotADB:
		return fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	return err
}

// wrapOS says what failed, and that the disk is full where that is why.
func wrapOS(what string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%s: %w: %w", what, petrel.ErrDiskFull, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
