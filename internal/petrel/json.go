package petrel

import "bytes"

// LoneSurrogate looks for an escape \uD800 to \uDFFF outside of a pair in valid JSON. A decoder makes U+FFFD of each without a word: what is kept would
// not be what was sent, and two different texts would be one.
func LoneSurrogate(json []byte) bool {
	for {
		i := bytes.IndexByte(json, '\\')
		if i < 0 {
			return false
		}
		if json = json[i+1:]; json[0] != 'u' {
			json = json[1:]
			continue
		}
		first := surrogate(json[1:5])
		json = json[5:]
		switch {
		case first == 0:
		case first == 2, len(json) < 6, json[0] != '\\', json[1] != 'u', surrogate(json[2:6]) != 2:
			return true
		default:
			json = json[6:]
		}
	}
}

// surrogate says which half of a pair four hexadecimal digits are: 1 or 2; 0: none.
func surrogate(digits []byte) int {
	switch second := digits[1] | 0x20; { // in lower case; digits stay what they are
	case digits[0]|0x20 != 'd' || second < '8':
		return 0
	case second < 'c':
		return 1
	}
	return 2
}
