package petrel

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestLoneSurrogate(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		`"\ud800"`: true, `"\uDC00\ud800"`: true, `"\ud83d\n\ude00"`: true, `"\ud83d-\ude00"`: true, `["\ud83d","\ude00"]`: true, `"\ud83d\\ude00"`: true,
		`"\uDFFF"`: true, `"\ud83d\ud83d\ude00"`: true, `"\uD83d\u0041"`: true,
		`"\ud83d\uDE00\n\u00e9\ud7ff\ue000\\ud800"`: false, `"\uDBFF\uDFFF\uD800\uDC00"`: false, `""`: false, `"\\\\\""`: false, `{"\u0d80":"\u00d8"}`: false,
	} {
		if got := LoneSurrogate([]byte(text)); got != want || !json.Valid([]byte(text)) {
			t.Errorf("%s: %v", text, got)
		}
	}
}

// FuzzLoneSurrogate: of a text without U+FFFD a decoder makes one where, and only where, there is half of a character.
func FuzzLoneSurrogate(f *testing.F) {
	for _, s := range []string{`"\ud83d\ude00"`, `"\ud83d"`, `"\\ud83d\uDC00"`, `"x"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var text string
		lower := strings.ToLower(s)
		if json.Unmarshal([]byte(s), &text) != nil || strings.Contains(strings.ToValidUTF8(s, "\ufffd"), "\ufffd") || strings.Contains(lower, "\\ufffd") {
			return
		}
		if got := LoneSurrogate([]byte(s)); got != strings.Contains(text, "\ufffd") {
			t.Fatalf("%q, which is %q: %v", s, text, got)
		}
	})
}
