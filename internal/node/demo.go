package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/petrel-chat/petrel/internal/chat"
	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// demoTokenTTL is how long a visitor of the demo stays signed in.
const demoTokenTTL = 12 * time.Hour

// demoPeople live in the demo's rooms.
var demoPeople = []string{"Ada", "Bruno", "Chioma", "Dilan", "Esther", "Finn"}

type demoRoom struct {
	id    petrel.RoomID
	name  string
	lines []demoLine
}

type demoLine struct{ who, text string }

// demoRooms hold what was said before the visitor came.
var demoRooms = []demoRoom{
	{"lobby", "Lobby", []demoLine{
		{"Ada", "Good morning, everyone. Coffee is ready, the build is green."},
		{"Bruno", "In that order of importance, I hope."},
		{"Ada", "Naturally."},
		{"Chioma", "Morning! I moved the release notes into the shared folder. Two sentences are still missing."},
		{"Finn", "Which two?"},
		{"Chioma", "The one about the new search and the one about who to thank."},
		{"Finn", "I'll write the first. Esther knows the second better."},
		{"Esther", "On it. Is Thursday still the day?"},
		{"Ada", "Thursday, ten o'clock. If nobody finds anything, we ship."},
		{"Bruno", "Somebody always finds something."},
		{"Dilan", "I found something."},
		{"Bruno", "There it is."},
		{"Dilan", "The export puts the date in American order for our Danish customer. One line, already fixed, please review."},
		{"Ada", "Reviewing now."},
		{"Ada", "Approved. Nice catch."},
		{"Esther", "New people joining today, by the way. Say hello when you see them."},
	}},
	{"random", "Random", []demoLine{
		{"Finn", "Did you know that storm petrels patter over the waves with their feet? It looks as if they walked on water."},
		{"Chioma", "That is where the name comes from. Saint Peter."},
		{"Finn", "You always know the second half of my facts."},
		{"Bruno", "They also stay out at sea in weather that sends everyone else home."},
		{"Esther", "Sounds like Dilan during the last on-call week."},
		{"Dilan", "I had snacks. It was fine."},
		{"Ada", "Lunch? The Thai place has the good curry on Tuesdays."},
		{"Esther", "It is Wednesday."},
		{"Ada", "Then the acceptable curry."},
		{"Chioma", "I'm in. 12:15 at the door."},
		{"Bruno", "Bringing an umbrella, because somebody has to."},
	}},
	{"help", "Help", []demoLine{
		{"Dilan", "How do I read what was said while my laptop slept?"},
		{"Esther", "You don't have to do anything. The page remembers the last message you saw and asks for what came after it."},
		{"Dilan", "And if the Wi-Fi goes away while I'm typing?"},
		{"Esther", "The message waits in your browser and is sent when the connection is back. Once, not twice."},
		{"Bruno", "I tried. I pulled the cable in the middle of a sentence."},
		{"Esther", "And?"},
		{"Bruno", "It arrived. My sentence was still bad."},
		{"Finn", "Can I correct a message?"},
		{"Chioma", "Yes, your own ones. Deleting works too; a small note stays in its place so that the conversation still makes sense."},
		{"Finn", "Thanks!"},
		{"Ada", "For the keyboard people: Enter sends, Shift+Enter makes a new line."},
	}},
}

// seedDemo makes the demo's app, people and rooms, as the people themselves would. Everything has an id,
// so that a second start adds nothing.
func (n *Node) seedDemo(ctx context.Context) (petrel.AppID, error) {
	app := petrel.AppID(n.cfg.AppID)
	if app == "" {
		app = demoAppID
	}
	if _, err := n.App(ctx, app); petrel.CodeOf(err) == petrel.CodeAppNotFound {
		if _, err := n.CreateApp(ctx, NewApp{ID: app, Key: n.cfg.AppKey, Secret: n.cfg.AppSecret, Name: "Demo"}); err != nil {
			return "", err
		}
	} else if err != nil {
		return "", err
	}
	for _, room := range demoRooms {
		if err := n.seedRoom(ctx, app, room); err != nil {
			return "", fmt.Errorf("seed the room %s: %w", room.id, err)
		}
	}
	return app, nil
}

// seedRoom makes a room and lets its people say their lines. The rooms and messages of a demo that was
// started before, or changed by visitors since, stay as they are.
func (n *Node) seedRoom(ctx context.Context, app petrel.AppID, room demoRoom) error {
	create := chat.CreateRoom{ID: room.id, Kind: event.RoomOpen, Name: room.name}
	meta := command.Meta{Command: "demo-" + petrel.CommandID(room.id)}
	if _, err := n.desk.Do(ctx, petrel.Actor{Kind: petrel.ActorApp, App: app}, meta, create); err != nil {
		if code := petrel.CodeOf(err); code == petrel.CodeIDReused || code == petrel.CodeRoomDeleted {
			return nil
		}
		return err
	}
	for i, line := range room.lines {
		user, err := demoUser(line.who)
		if err != nil {
			return err
		}
		meta := command.Meta{Command: petrel.CommandID(fmt.Sprintf("demo-%s-%02d", room.id, i+1))}
		_, err = n.desk.Do(ctx, petrel.Actor{Kind: petrel.ActorUser, App: app, User: user}, meta, chat.PostMessage{Room: room.id, Text: line.text})
		if code := petrel.CodeOf(err); err != nil && code != petrel.CodeMessageDeleted && code != petrel.CodeIDReused {
			return err
		}
	}
	return nil
}

// demoUser makes a user id of a name: "Ada Lovelace" is ada-lovelace. A name without a single letter
// that ids know gets an id made of its hash.
func demoUser(name string) (petrel.UserID, error) {
	name = strings.Join(strings.Fields(name), " ")
	if name == "" || utf8.RuneCountInString(name) > 40 || !utf8.ValidString(name) {
		return "", petrel.Errorf(petrel.CodeInvalidField, "Choose a name of 1 to 40 characters.")
	}
	var b strings.Builder
	for _, r := range strings.ToLower(name) {
		switch {
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9', r == '_', r == '.':
			b.WriteRune(r)
		case r == ' ' || r == '-':
			b.WriteByte('-')
		}
	}
	id := strings.Trim(b.String(), "-.")
	if id == "" {
		sum := sha256.Sum256([]byte(name))
		id = "guest-" + hex.EncodeToString(sum[:4])
	}
	return petrel.ParseUserID(id)
}

// mountDemo serves the demo's endpoints and example pages; they exist with --demo only.
func (n *Node) mountDemo(g *gateway.Gateway) {
	mux := http.NewServeMux()
	n.demoRoutes(mux)
	examples := http.Handler(mux)
	if n.cfg.Demo {
		examples = n.webHandler()
	}
	g.Handle("/examples/", gateway.Route{Access: gateway.Public}, examples)
	for _, pattern := range []string{"/demo", "/demo/"} {
		g.Handle(pattern, gateway.Route{Access: gateway.Public, MaxBody: 4096}, mux)
	}
}

func (n *Node) demoRoutes(mux *http.ServeMux) {
	if !n.cfg.Demo {
		gone := func(w http.ResponseWriter, _ *http.Request) {
			writeProblem(w, petrel.Errorf(petrel.CodeNotFound, "This server does not run the demo."))
		}
		for _, pattern := range []string{"/demo", "/demo/", "/examples/"} {
			mux.HandleFunc(pattern, gone)
		}
		return
	}
	mux.HandleFunc("GET /demo", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, "application/json", map[string]any{"demo": true, "app": n.demoApp, "people": demoPeople})
	})
	mux.HandleFunc("POST /demo/token", func(w http.ResponseWriter, r *http.Request) {
		in, err := readBody[struct {
			Name string `json:"name"`
		}](r)
		if err != nil {
			writeProblem(w, err)
			return
		}
		user, err := demoUser(in.Name)
		if err != nil {
			writeProblem(w, err)
			return
		}
		token, err := n.MintToken(r.Context(), n.demoApp, user, demoTokenTTL)
		writeAnswer(w, token, err)
	})
	n.demoPusherRoutes(mux)
	mux.HandleFunc("/demo/", func(w http.ResponseWriter, _ *http.Request) {
		writeProblem(w, petrel.Errorf(petrel.CodeNotFound, "The demo has GET /demo, POST /demo/token and what /examples/pusher.html needs."))
	})
}
