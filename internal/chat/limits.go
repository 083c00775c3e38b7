package chat

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Limits of fields. docs/CHAT.md shows them; TestDocs keeps it true.
const (
	MaxText          = 16_384 // bytes
	MaxRoomName      = 200    // bytes
	MaxCustom        = 8_192  // bytes of canonical JSON
	MaxCustomDepth   = 16     // objects and arrays within each other
	MaxMentions      = 50     // users per message
	MaxCreateMembers = 100    // members named when a room is created, its creator not counted
	MaxEdits         = 1_000  // edits of one message: what its deletion must clear is bounded
	MaxPage          = 1_000  // items per page of anything
	DefaultMessages  = 50     // messages per page
	DefaultEvents    = 100    // events, rooms and members per page
	MaxSyncRooms     = 100    // rooms per sync
)

// limitRow is one line of the table in docs/CHAT.md.
type limitRow struct{ Field, Limit, Refusal string }

// limitRows renders the constants above.
func limitRows() []limitRow {
	n := func(v int) string {
		s := strconv.Itoa(v)
		if v >= 1000 {
			s = s[:len(s)-3] + "," + s[len(s)-3:]
		}
		return s
	}
	upTo := func(v int, what string) string { return "at most " + n(v) + " " + what }
	return []limitRow{
		{"room and message ids", "1 to " + n(petrel.MaxNameLen) + " of `A–Z a–z 0–9 _ - . : @ =`, not `.` or `..` alone", "`invalid_id`"},
		{"user ids", "1 to " + n(petrel.MaxUserLen) + " of the same", "`invalid_id`"},
		{"`text` of a message", "1 to " + n(MaxText) + " bytes of UTF-8 without NUL", "`invalid_field`, `invalid_utf8`, `too_large`"},
		{"`name` of a room", upTo(MaxRoomName, "bytes of UTF-8 without control characters; none in direct rooms"), "`invalid_field`, `invalid_utf8`, `too_large`"},
		{"`custom` of a room or message", "a JSON object, " + upTo(MaxCustom, "bytes") + " once canonical (keys sorted, no spaces), nested " + upTo(MaxCustomDepth, "deep"), "`invalid_field`, `too_large`"},
		{"`mentions`", upTo(MaxMentions, "user ids; repeated ones count once"), "`invalid_field`"},
		{"`members` of a new room", upTo(MaxCreateMembers, "beside its creator; exactly two people in a direct room"), "`invalid_field`"},
		{"edits of one message", upTo(MaxEdits, ""), "`limit_reached`"},
		{"`limit` of a page", "1 to " + n(MaxPage) + "; " + n(DefaultMessages) + " messages or " + n(DefaultEvents) + " of anything else when absent", "`invalid_field`"},
		{"rooms of one sync", "1 to " + n(MaxSyncRooms) + ", and " + n(MaxPage) + " events together", "`invalid_field`"},
	}
}

func checkText(text string) error {
	switch {
	case text == "":
		return petrel.Errorf(petrel.CodeInvalidField, "The text is empty. A message needs at least one character.")
	case len(text) > MaxText:
		return petrel.Errorf(petrel.CodeTooLarge, "The text is %d bytes long; at most %d are allowed.", len(text), MaxText)
	case !utf8.ValidString(text):
		return petrel.Errorf(petrel.CodeInvalidUTF8, "The text is not UTF-8.")
	case strings.IndexByte(text, 0) >= 0:
		return petrel.Errorf(petrel.CodeInvalidField, "The text has a NUL character.")
	}
	return nil
}

func checkName(name string) error {
	switch {
	case len(name) > MaxRoomName:
		return petrel.Errorf(petrel.CodeTooLarge, "The name is %d bytes long; at most %d are allowed.", len(name), MaxRoomName)
	case !utf8.ValidString(name):
		return petrel.Errorf(petrel.CodeInvalidUTF8, "The name is not UTF-8.")
	case strings.IndexFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }) >= 0:
		return petrel.Errorf(petrel.CodeInvalidField, "The name has a control character.")
	}
	return nil
}

// checkMentions returns the users named, each once, in the order of the list. An empty list is nil.
func checkMentions(users []petrel.UserID) ([]petrel.UserID, error) {
	if len(users) == 0 {
		return nil, nil
	}
	once := make([]petrel.UserID, 0, min(len(users), MaxMentions))
	seen := make(map[petrel.UserID]bool, len(once))
	for _, u := range users {
		if seen[u] {
			continue
		}
		if len(once) == MaxMentions {
			return nil, petrel.Errorf(petrel.CodeInvalidField, "A message may mention at most %d users.", MaxMentions)
		}
		seen[u] = true
		once = append(once, u)
	}
	return once, nil
}

// canonical returns the one form in which a custom object is kept, hashed and sent: keys sorted, no
// spaces, numbers as written. Nothing, null and {} are nil. It is applied once, before anything is decided.
func canonical(custom json.RawMessage) ([]byte, error) {
	raw := bytes.TrimSpace(custom)
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	if !utf8.Valid(raw) {
		return nil, petrel.Errorf(petrel.CodeInvalidUTF8, "The custom field is not UTF-8.")
	}
	notObject := petrel.Errorf(petrel.CodeInvalidField, "The custom field must be one JSON object.")
	if raw[0] != '{' || !shallow(raw) {
		return nil, petrel.Errorf(petrel.CodeInvalidField, "The custom field must be a JSON object nested at most %d deep.", MaxCustomDepth)
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var object map[string]any
	if err := d.Decode(&object); err != nil {
		return nil, notObject.Because(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, notObject
	}
	if len(object) == 0 {
		return nil, nil
	}
	b := encode(object)
	if len(b) > MaxCustom {
		return nil, petrel.Errorf(petrel.CodeTooLarge, "The custom field takes %d bytes; at most %d are allowed.", len(b), MaxCustom)
	}
	return b, nil
}

// shallow reports whether brackets outside strings nest at most MaxCustomDepth deep. It runs before the
// decoder so that a hostile depth costs one pass.
func shallow(raw []byte) bool {
	depth, quoted := 0, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > MaxCustomDepth {
				return false
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return true
}

// pageLimit returns the number of items asked for.
func pageLimit(limit, none int) (int, error) {
	if limit == 0 {
		return none, nil
	}
	if limit < 0 || limit > MaxPage {
		return 0, petrel.Errorf(petrel.CodeInvalidField, "The limit must be from 1 to %d.", MaxPage)
	}
	return limit, nil
}
