package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/petrel-chat/petrel/internal/node"
	"github.com/petrel-chat/petrel/internal/petrel"
)

type importCmd struct {
	IRC importIRCCmd `cmd:"" name:"irc" help:"IRC logs: [09:14] <nick> text."`
}

type importIRCCmd struct {
	Files  []string `arg:"" type:"existingfile" help:"Log files, in the order in which they were written."`
	App    string   `required:"" env:"PETREL_APP" placeholder:"ID" help:"Id of the app."`
	Room   string   `required:"" placeholder:"ROOM" help:"Room for the messages; an open room is made when absent."`
	Speed  string   `default:"max" placeholder:"SPEED" help:"max, or times the pace of the log: 60x plays an hour in a minute."`
	URL    string   `name:"url" env:"PETREL_URL" placeholder:"URL" help:"Public listener of the node. Found through the data folder when absent."`
	Key    string   `env:"PETREL_KEY" placeholder:"KEY" help:"Key of the app. Asked of the node's operator when absent."`
	Secret string   `env:"PETREL_SECRET" placeholder:"SECRET" help:"Secret of the app. Better in the environment than here."`
	target
}

// Help is shown by `petrel import irc --help`.
func (importIRCCmd) Help() string {
	return `Sends what was said in the logs through the public API, as the people who said it, in the order of the files.

Running it again adds nothing, and what an interrupted run began, the next one finishes: a message's id is
made of the room, the file's name, the line's number and the line.

Only messages and actions (/me, with custom.irc.action = true) are sent; joins, parts and renames are not.
The time of a message is now; that of the log is kept in custom.irc.time and custom.irc.date.
A nick becomes a user id by writing what ids do not allow as = and two digits: |QuaD- is =7CQuaD-.

Examples:
  petrel import irc --app 482913 --room ubuntu logs/*.txt
  petrel import irc --app 482913 --room ubuntu --speed 60x logs/2004-12-25.txt`
}

// importer sends messages one after the other: an order in the file is an order in the room.
type importer struct {
	con         *console
	client      *http.Client
	base        string
	key, secret string
	room        string
	speed       float64 // 0 is max
	bar         *progressbar.ProgressBar

	sent, there int
}

func (c *importIRCCmd) Run(con *console) error {
	speed, err := parseSpeed(c.Speed)
	if err != nil {
		return mistake{err}
	}
	if _, err := petrel.ParseRoomID(c.Room); err != nil {
		return mistake{errors.New(sentence(err))}
	}
	logs, total, err := readLogs(c.Files)
	if err != nil {
		return err
	}
	imp := &importer{con: con, client: &http.Client{Timeout: time.Minute}, room: c.Room, speed: speed}
	defer imp.client.CloseIdleConnections()
	if err := c.credentials(con, imp); err != nil {
		return err
	}
	if err := imp.ensureRoom(); err != nil {
		return fmt.Errorf("make the room %s: %w", c.Room, err)
	}
	imp.bar = newBar(con.err, total)
	people := map[string]bool{}
	started := time.Now()
	for _, log := range logs {
		if err := imp.play(log, people); err != nil {
			_ = imp.bar.Exit()
			return fmt.Errorf("%s: %w; run the same command again to go on from here", log.Name, err)
		}
	}
	_ = imp.bar.Finish()
	var notes, blank, broken int
	for _, log := range logs {
		notes, blank, broken = notes+log.Notes, blank+log.Blank, broken+log.Broken
	}
	fmt.Fprintf(con.out, "%d messages sent, %d had been there, by %d people, from %d files in %s\n",
		imp.sent, imp.there, len(people), len(logs), time.Since(started).Round(100*time.Millisecond))
	fmt.Fprintf(con.out, "left out: %d joins, parts and other notices, %d messages without text, %d lines of no known form\n", notes, blank, broken)
	return nil
}

func readLogs(files []string) (logs []*ircLog, total int, err error) {
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return nil, 0, err
		}
		log, err := parseIRC(name, f)
		_ = f.Close()
		if err != nil {
			return nil, 0, err
		}
		logs = append(logs, log)
		total += len(log.Lines)
	}
	if total == 0 {
		return nil, 0, mistake{errors.New("the files hold no messages; lines look like [09:14] <nick> text")}
	}
	return logs, total, nil
}

func parseSpeed(s string) (float64, error) {
	if s == "max" {
		return 0, nil
	}
	f, err := strconv.ParseFloat(strings.TrimSuffix(s, "x"), 64)
	if err != nil || !(f > 0) || f > 1e6 {
		return 0, fmt.Errorf("--speed is %q; it must be max, or a number of times like 60x", s)
	}
	return f, nil
}

// credentials fills in the address and the app's key: from flags, or from the node's operator.
func (c *importIRCCmd) credentials(con *console, imp *importer) error {
	imp.base, imp.key, imp.secret = strings.TrimRight(c.URL, "/"), c.Key, c.Secret
	if (c.Key == "") != (c.Secret == "") {
		return mistake{errors.New("--key and --secret belong together; give both or none")}
	}
	if imp.base != "" && imp.key != "" {
		return nil
	}
	op, owner, closeIt, err := c.open(con)
	if err != nil {
		return err
	}
	defer func() { _ = closeIt() }()
	if imp.base == "" {
		if owner.Listen == "" {
			return mistake{errors.New("no node runs on this data folder; start it with `petrel serve`, or name another with --url")}
		}
		if imp.base = "http://" + owner.Listen; owner.TLS {
			imp.base = "https://" + owner.Listen // a certificate for another name is refused with a sentence that says so: --url names it
		}
	}
	if imp.key == "" {
		app, err := op.App(con.ctx, petrel.AppID(c.App))
		if err != nil {
			return err
		}
		newest := node.Key{}
		for _, k := range app.Keys {
			newest = k
		}
		imp.key, imp.secret = newest.Key, newest.Secret
	}
	return nil
}

// play sends one log. Lines that had been there already are not waited for: the pace begins
// where a run before this one ended.
func (imp *importer) play(log *ircLog, people map[string]bool) error {
	var startedAt, startedLog time.Time
	for _, l := range log.Lines {
		if imp.speed > 0 && !startedLog.IsZero() {
			due := startedAt.Add(time.Duration(float64(l.At.Sub(startedLog)) / imp.speed))
			if err := wait(imp.con.ctx, time.Until(due)); err != nil {
				return err
			}
		}
		repeated, err := imp.post(log, l)
		if err != nil {
			return fmt.Errorf("line %d: %w", l.Number+1, err)
		}
		if repeated {
			imp.there++
		} else {
			imp.sent++
			if startedLog.IsZero() {
				startedAt, startedLog = time.Now(), l.At
			}
		}
		people[l.Nick] = true
		_ = imp.bar.Add(1)
	}
	return nil
}

// ircCustom is what a message keeps of its line.
type ircCustom struct {
	Nick   string `json:"nick"`
	Date   string `json:"date,omitempty"`
	Time   string `json:"time"`
	File   string `json:"file"`
	Line   int    `json:"line"` // from 0
	Action bool   `json:"action,omitempty"`
}

func (imp *importer) post(log *ircLog, l ircLine) (repeated bool, err error) {
	date := ""
	if log.Date != "" {
		date = l.At.Format(time.DateOnly)
	}
	body := map[string]any{
		"id": l.messageID(log.Name, imp.room), "text": l.Text,
		"custom": map[string]any{"irc": ircCustom{Nick: l.Nick, Date: date, Time: l.Clock, File: log.Name, Line: l.Number, Action: l.Action}},
	}
	status, err := imp.call(http.MethodPost, "/v1/rooms/"+url.PathEscape(imp.room)+"/messages", userOfNick(l.Nick), body)
	var refused *petrel.Error
	if errors.As(err, &refused) && refused.Code == petrel.CodeMessageDeleted {
		return true, nil // somebody deleted it since: that is no reason to bring it back
	}
	return status == http.StatusOK, err
}

func (imp *importer) ensureRoom() error {
	path := "/v1/rooms/" + url.PathEscape(imp.room)
	_, err := imp.call(http.MethodGet, path, "", nil)
	if petrel.CodeOf(err) != petrel.CodeRoomNotFound {
		return err
	}
	_, err = imp.call(http.MethodPost, "/v1/rooms", "", map[string]any{"id": imp.room, "kind": "open", "name": imp.room})
	return err
}

// call sends one request until it is answered for good. Every call here may be repeated: messages and
// rooms carry their ids. A server that is away gets a minute to come back.
func (imp *importer) call(method, path, user string, body any) (status int, err error) {
	var payload []byte
	if body != nil {
		if payload, err = json.Marshal(body); err != nil {
			return 0, err
		}
	}
	giveUp, told := time.Now().Add(time.Minute), false
	for delay := 50 * time.Millisecond; ; delay = min(2*delay, 5*time.Second) {
		status, again, err := imp.once(method, path, user, payload)
		if err == nil || again < 0 || time.Now().After(giveUp) {
			return status, err
		}
		if delay > time.Second && !told {
			told = true
			fmt.Fprintf(imp.con.err, "petrel: %s; trying again for a minute\n", sentence(err))
		}
		if err := wait(imp.con.ctx, max(delay, again)); err != nil {
			return 0, err
		}
	}
}

// once sends one request; again < 0 says that repeating it is of no use.
func (imp *importer) once(method, path, user string, payload []byte) (status int, again time.Duration, err error) {
	req, err := http.NewRequestWithContext(imp.con.ctx, method, imp.base+path, bytes.NewReader(payload))
	if err != nil {
		return 0, -1, mistake{fmt.Errorf("--url is not a URL: %w", err)}
	}
	req.SetBasicAuth(imp.key, imp.secret)
	if payload != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if user != "" {
		req.Header.Set("Petrel-User", user)
	}
	resp, err := imp.client.Do(req)
	if err != nil {
		if imp.con.ctx.Err() != nil {
			return 0, -1, errors.New("interrupted")
		}
		return 0, 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, 0, err
	}
	if resp.StatusCode < 300 {
		return resp.StatusCode, 0, nil
	}
	var p struct {
		Code   petrel.Code
		Detail string
	}
	if json.Unmarshal(b, &p) != nil || p.Code == "" {
		return 0, -1, fmt.Errorf("%s answered %s; is it a petrel node?", imp.base, resp.Status)
	}
	again = -1
	if resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable {
		seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
		again = time.Duration(seconds) * time.Second
	}
	return resp.StatusCode, again, petrel.Errorf(p.Code, "%s", p.Detail)
}

// wait pauses for d, or until the command is interrupted.
func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return errors.New("interrupted")
	case <-t.C:
		return nil
	}
}

// newBar draws on a terminal only; elsewhere it is silent.
func newBar(w io.Writer, total int) *progressbar.ProgressBar {
	f, ok := w.(*os.File)
	return progressbar.NewOptions(total,
		progressbar.OptionSetWriter(w),
		progressbar.OptionSetVisibility(ok && term.IsTerminal(int(f.Fd()))),
		progressbar.OptionSetDescription("messages"),
		progressbar.OptionShowCount(), progressbar.OptionShowIts(),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionClearOnFinish(),
	)
}
