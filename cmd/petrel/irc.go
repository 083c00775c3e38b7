package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"
)

// ircLine is one thing that somebody said in an IRC log.
type ircLine struct {
	Number int    // of the line in its file, from 0, joins and parts included (as the corpus's annotations count)
	Nick   string // as written
	Text   string // never empty
	Action bool   // "/me waves"
	Clock  string // "09:14" as written; on old-style action lines, that of the line before
	At     time.Time
}

// ircLog is one file: what was said, and what was left out and why.
type ircLog struct {
	Name   string // base name of the file
	Date   string // "2004-12-25" when the name begins with a date, else ""
	Lines  []ircLine
	Notes  int // joins, parts, renames, modes, kicks
	Blank  int // messages without any text
	Broken int // lines that are none of the known forms
}

// The forms of a line. Old logs write an action as "=== nick waves", the same mark as
// joins and parts have, so that whatever is no known notice is an action.
var (
	ircMessage = regexp.MustCompile(`^\[(\d\d:\d\d)\] <([^>]+)> ?(.*)$`)
	ircAction  = regexp.MustCompile(`^\[(\d\d:\d\d)\]  ?\* (\S+) ?(.*)$`)
	ircNotice  = regexp.MustCompile(`^=== (?:.+ \[[^\]]*\] +has (?:joined|left|quit)\b.*|\S+ is now known as \S+|mode/.*|\S+ was kicked off .*|\S+ (?:has )?set(?:s)? (?:the )?topic.*|[Tt]opic .*)$`)
	ircOldAct  = regexp.MustCompile(`^=== (\S+) (.+)$`)
)

// parseIRC reads a log. Clock times run from the date in the file's name (or from an arbitrary
// one, when it has none); a jump back of more than twelve hours is midnight.
func parseIRC(name string, r io.Reader) (*ircLog, error) {
	log := &ircLog{Name: filepath.Base(name)}
	day := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	if len(log.Name) >= 10 {
		if d, err := time.Parse(time.DateOnly, log.Name[:10]); err == nil {
			day, log.Date = d, log.Name[:10]
		}
	}
	clock, last := "00:00", day
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	for number := 0; sc.Scan(); number++ {
		line := strings.TrimSuffix(sc.Text(), "\r")
		if !utf8.ValidString(line) {
			line = strings.ToValidUTF8(line, "\uFFFD")
		}
		l, kind := classifyIRC(line)
		switch kind {
		case ircKindNotice:
			log.Notes++
			continue
		case ircKindBroken:
			if line != "" {
				log.Broken++
			}
			continue
		}
		if l.Clock != "" {
			t, err := time.Parse("15:04", l.Clock)
			if err != nil {
				log.Broken++
				continue
			}
			at := day.Add(time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute)
			if last.Sub(at) > 12*time.Hour {
				day, at = day.AddDate(0, 0, 1), at.AddDate(0, 0, 1)
			}
			clock, last = l.Clock, at
		}
		if strings.TrimSpace(l.Text) == "" {
			log.Blank++
			continue
		}
		l.Number, l.Clock, l.At = number, clock, last
		log.Lines = append(log.Lines, l)
	}
	if errors.Is(sc.Err(), bufio.ErrTooLong) {
		return nil, fmt.Errorf("%s is no IRC log: it has a line of more than 1 MiB", name)
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return log, nil
}

type ircKind int

const (
	ircKindSaid ircKind = iota
	ircKindNotice
	ircKindBroken
)

func classifyIRC(line string) (ircLine, ircKind) {
	if m := ircMessage.FindStringSubmatch(line); m != nil {
		return ircLine{Clock: m[1], Nick: m[2], Text: cleanText(m[3])}, ircKindSaid
	}
	if m := ircAction.FindStringSubmatch(line); m != nil {
		return ircLine{Clock: m[1], Nick: m[2], Text: cleanText(m[3]), Action: true}, ircKindSaid
	}
	if ircNotice.MatchString(line) {
		return ircLine{}, ircKindNotice
	}
	if m := ircOldAct.FindStringSubmatch(line); m != nil {
		return ircLine{Nick: m[1], Text: cleanText(m[2]), Action: true}, ircKindSaid
	}
	return ircLine{}, ircKindBroken
}

// cleanText takes out control characters (mIRC colours, backspaces), which mean nothing
// outside a terminal; tabs stay.
func cleanText(s string) string {
	return strings.Map(func(r rune) rune {
		if (r < ' ' && r != '\t') || r == 0x7f {
			return -1
		}
		return r
	}, s)
}

// userOfNick makes a user id of a nick: every byte outside the alphabet of ids, and "=" itself,
// becomes "=" and two hexadecimal digits, so that "|QuaD-" is "=7CQuaD-". Two nicks never share
// an id, and nickOfUser finds the way back. Nicks are told apart by case, as their writers did.
func userOfNick(nick string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	dots := nick == "." || nick == ".." // no ids: they cannot stand in an address
	for i := range len(nick) {
		c := nick[i]
		switch {
		case c == '.' && !dots:
			b.WriteByte(c)
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("_-:@", c) >= 0:
			b.WriteByte(c)
		default:
			b.WriteByte('=')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		}
	}
	return b.String()
}

// messageID names a line for ever: a second import, or the rest of one that was cut off, meets
// the same ids. The room is in it because one id may not be used in two rooms by one user.
func (l ircLine) messageID(file, room string) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s\x00%s\x00%d\x00%s\x00%s", room, file, l.Number, l.Nick, l.Text)
	return "irc-" + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(h.Sum(nil)[:16]))
}
