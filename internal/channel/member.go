package channel

import (
	"bytes"
	"encoding/json"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Member is who a subscriber of a presence channel says that they are, as the app signed it.
type Member struct {
	ID   petrel.UserID
	Info []byte // user_info as compact JSON; nil: there was none
}

// ParseMember reads the channel_data of a subscription to a presence channel: {"user_id": string or number, "user_info": anything}.
// maxInfo bounds the bytes of user_info; 0 is DefaultMaxInfo. Refusals are CodeInvalidJSON, CodeInvalidUTF8, CodeInvalidField, CodeInvalidID and CodeTooLarge.
func ParseMember(data string, maxInfo int) (Member, error) {
	if maxInfo <= 0 {
		maxInfo = DefaultMaxInfo
	}
	var in struct{ UserID, UserInfo json.RawMessage }
	if err := ReadObject("The channel_data", []byte(data), Field{"user_id", &in.UserID}, Field{"user_info", &in.UserInfo}); err != nil {
		return Member{}, err
	}
	text, err := idText(in.UserID)
	if err != nil {
		return Member{}, err
	}
	id, err := ParseUser(text)
	if err != nil {
		return Member{}, err
	}
	m := Member{ID: id}
	if len(in.UserInfo) == 0 {
		return m, nil
	}
	var info bytes.Buffer
	if err := json.Compact(&info, in.UserInfo); err != nil {
		return Member{}, petrel.Errorf(petrel.CodeInvalidJSON, "The user_info is not JSON.").Because(err)
	}
	if info.Len() > maxInfo {
		return Member{}, petrel.Errorf(petrel.CodeTooLarge, "The user_info has %d bytes; at most %d are allowed.", info.Len(), maxInfo)
	}
	m.Info = info.Bytes()
	return m, nil
}

// idText is the id as a string: a number keeps the digits that it was written with.
func idText(raw json.RawMessage) (string, error) {
	if len(raw) > 0 {
		switch c := raw[0]; {
		case c == '"':
			var s string
			err := Field{"user_id", &s}.Read("The channel_data", raw)
			return s, err
		case c == '-' || ('0' <= c && c <= '9'):
			return string(raw), nil
		}
	}
	return "", petrel.Errorf(petrel.CodeInvalidField, "The channel_data has no user_id that is a string or a number.")
}
