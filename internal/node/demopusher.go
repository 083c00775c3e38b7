package node

import (
	"context"
	"crypto/hmac"
	"crypto/md5" //nolint:gosec // the protocol's checksum of a body; the signature over it is what is trusted
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// The two channels of the page /examples/pusher.html. Its endpoints sign for no others.
const (
	demoPresence = "presence-demo"
	demoPrivate  = "private-demo"
)

// demoText is how long a text may be that the page has signed for its curl.
const demoText = 200

// socketID is what every SDK accepts as one; anything else could be made to sign something else.
var socketID = regexp.MustCompile(`^\d{1,20}\.\d{1,20}$`)

// demoPusherRoutes is the backend that an app of Pusher's kind has, as far as the demo page needs one: any visitor may be
// anybody, on the demo's two channels.
func (n *Node) demoPusherRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET /demo/pusher", func(w http.ResponseWriter, r *http.Request) {
		_, key, err := n.demoKey(r.Context())
		writeAnswer(w, map[string]any{"key": key.Key, "presence": demoPresence, "private": demoPrivate}, err)
	})
	mux.HandleFunc("POST /demo/pusher/auth", func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil {
			writeProblem(w, petrel.Errorf(petrel.CodeInvalidField, "The form cannot be read."))
			return
		}
		_, key, err := n.demoKey(r.Context())
		if err != nil {
			writeProblem(w, err)
			return
		}
		answer, err := demoAuth(key, r.PostForm)
		writeAnswer(w, answer, err)
	})
	mux.HandleFunc("GET /demo/pusher/event", func(w http.ResponseWriter, r *http.Request) {
		app, key, err := n.demoKey(r.Context())
		if err != nil {
			writeProblem(w, err)
			return
		}
		answer, err := demoEvent(app, key, r.URL.Query().Get("text"), time.Now())
		writeAnswer(w, answer, err)
	})
}

// demoKey is the demo's app and its newest key.
func (n *Node) demoKey(ctx context.Context) (petrel.AppID, Key, error) {
	app, err := n.App(ctx, n.demoApp)
	if err != nil {
		return "", Key{}, err
	}
	if len(app.Keys) == 0 {
		return "", Key{}, errors.New("the demo's app has no key")
	}
	return app.ID, app.Keys[len(app.Keys)-1], nil
}

// demoSignature answers the page's auth requests.
type demoSignature struct {
	Auth        string `json:"auth"`
	ChannelData string `json:"channel_data,omitempty"`
}

// demoAuth lets whoever asks onto the demo's channels, under the id and the name they chose.
func demoAuth(key Key, form url.Values) (demoSignature, error) {
	socket, channel := form.Get("socket_id"), form.Get("channel_name")
	if !socketID.MatchString(socket) {
		return demoSignature{}, petrel.Errorf(petrel.CodeInvalidField, "socket_id is none.")
	}
	signed, data := socket+":"+channel, ""
	switch channel {
	case demoPrivate:
	case demoPresence:
		id, err := petrel.ParseUserID(form.Get("id"))
		if err != nil {
			return demoSignature{}, err
		}
		name := form.Get("name")
		if name == "" || utf8.RuneCountInString(name) > 40 {
			return demoSignature{}, petrel.Errorf(petrel.CodeInvalidField, "Choose a name of 1 to 40 characters.")
		}
		b, err := json.Marshal(map[string]any{"user_id": id, "user_info": map[string]string{"name": name}})
		if err != nil {
			return demoSignature{}, err
		}
		data = string(b)
		signed += ":" + data
	default:
		return demoSignature{}, petrel.Errorf(petrel.CodeForbidden, "The demo has the channels %s and %s.", demoPresence, demoPrivate)
	}
	return demoSignature{Auth: key.Key + ":" + demoMAC(key, signed), ChannelData: data}, nil
}

// demoRequest is a signed call of the HTTP API: what the page writes its curl from. It is good for ten minutes, for this body alone.
type demoRequest struct {
	Path string `json:"path"` // with its query
	Body string `json:"body"`
}

func demoEvent(app petrel.AppID, key Key, text string, at time.Time) (demoRequest, error) {
	if text == "" || utf8.RuneCountInString(text) > demoText {
		return demoRequest{}, petrel.Errorf(petrel.CodeInvalidField, "text has 1 to %d characters.", demoText)
	}
	data, err := json.Marshal(map[string]string{"text": text})
	if err != nil {
		return demoRequest{}, err
	}
	body, err := json.Marshal(map[string]any{"name": "message", "channels": []string{demoPrivate}, "data": string(data)})
	if err != nil {
		return demoRequest{}, err
	}
	sum := md5.Sum(body) //nolint:gosec // as above
	path := "/apps/" + string(app) + "/events"
	query := "auth_key=" + key.Key + "&auth_timestamp=" + strconv.FormatInt(at.Unix(), 10) + "&auth_version=1.0&body_md5=" + hex.EncodeToString(sum[:])
	return demoRequest{Path: path + "?" + query + "&auth_signature=" + demoMAC(key, "POST\n"+path+"\n"+query), Body: string(body)}, nil
}

func demoMAC(key Key, text string) string {
	mac := hmac.New(sha256.New, []byte(key.Secret))
	mac.Write([]byte(text))
	return hex.EncodeToString(mac.Sum(nil))
}
