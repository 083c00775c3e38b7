package identity

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// Settings are what an app may do, and how much of it. The defaults are Pusher's limits; an operator changes them app by app.
type Settings struct {
	ClientEvents      bool // clients may trigger events on private and presence channels
	SubscriptionCount bool // subscribers hear how many there are of them
	// AuthorizedConnections is how many seconds a connection has to subscribe to a channel that needs authorization, or to sign
	// in, before it is closed. 0: for ever.
	AuthorizedConnections int
	// ActivityTimeout is after how many seconds of silence a client asks whether the server is still there. It is told in the handshake: who
	// is connected keeps what that said.
	ActivityTimeout int

	MaxEventBytes   int // of an event's data
	MaxChannels     int // that one event is published to
	MaxBatch        int // events in one batch
	MaxMembers      int // users in one presence channel
	MaxUserBytes    int // of what is told about a user in presence
	MaxClientEvents int // per second and connection
	MaxWatchlist    int // users that one user watches
	CacheTTL        int // seconds that the last event of a cache channel is kept
	MaxChannelName  int // characters
	MaxEventName    int // characters
	// MaxConnections is how many connections the app may have on one node. 0: as many as the node takes.
	MaxConnections   int
	MaxSubscriptions int // of one connection
	MaxJobsWaiting   int // webhooks and other jobs of the app that wait to be done
	MaxSchedules     int
}

// settingSpec describes one setting. Names are written into the log: never change one, never reuse one.
type settingSpec struct {
	name          string
	def, min, max int64
	num           func(*Settings) *int  // nil: a switch
	flag          func(*Settings) *bool // nil: a number
}

// settingSpecs lists every setting in the order in which they are shown. It is never written after initialisation.
var settingSpecs = []settingSpec{
	{name: "client_events", def: 1, max: 1, flag: func(s *Settings) *bool { return &s.ClientEvents }},
	{name: "subscription_count", def: 0, max: 1, flag: func(s *Settings) *bool { return &s.SubscriptionCount }},
	{name: "authorized_connections", def: 0, max: 3600, num: func(s *Settings) *int { return &s.AuthorizedConnections }},
	{name: "activity_timeout", def: 120, min: 5, max: 3600, num: func(s *Settings) *int { return &s.ActivityTimeout }},
	{name: "max_event_bytes", def: 10_240, min: 1, max: 102_400, num: func(s *Settings) *int { return &s.MaxEventBytes }},
	{name: "max_channels", def: 100, min: 1, max: 1_000, num: func(s *Settings) *int { return &s.MaxChannels }},
	{name: "max_batch", def: 10, min: 1, max: 100, num: func(s *Settings) *int { return &s.MaxBatch }},
	{name: "max_members", def: 100, min: 1, max: 1_000, num: func(s *Settings) *int { return &s.MaxMembers }},
	{name: "max_user_bytes", def: 1_024, min: 1, max: 4_096, num: func(s *Settings) *int { return &s.MaxUserBytes }},
	{name: "max_client_events", def: 10, min: 1, max: 1_000, num: func(s *Settings) *int { return &s.MaxClientEvents }},
	{name: "max_watchlist", def: 100, min: 0, max: 1_000, num: func(s *Settings) *int { return &s.MaxWatchlist }},
	{name: "cache_ttl", def: 1_800, min: 1, max: 1_800, num: func(s *Settings) *int { return &s.CacheTTL }},
	{name: "max_channel_name", def: 200, min: 1, max: 200, num: func(s *Settings) *int { return &s.MaxChannelName }},
	{name: "max_event_name", def: 200, min: 1, max: 400, num: func(s *Settings) *int { return &s.MaxEventName }},
	{name: "max_connections", def: 0, min: 0, max: 10_000_000, num: func(s *Settings) *int { return &s.MaxConnections }},
	{name: "max_subscriptions", def: 1_000, min: 1, max: 10_000, num: func(s *Settings) *int { return &s.MaxSubscriptions }},
	{name: "max_jobs_waiting", def: 100_000, min: 0, max: 10_000_000, num: func(s *Settings) *int { return &s.MaxJobsWaiting }},
	{name: "max_schedules", def: 100, min: 0, max: 1_000, num: func(s *Settings) *int { return &s.MaxSchedules }},
}

func (p *settingSpec) set(s *Settings, v int64) {
	if p.flag != nil {
		*p.flag(s) = v != 0
	} else {
		*p.num(s) = int(v)
	}
}

func (p *settingSpec) get(s *Settings) int64 {
	switch {
	case p.flag == nil:
		return int64(*p.num(s))
	case *p.flag(s):
		return 1
	}
	return 0
}

func (p *settingSpec) show(v int64) string {
	switch {
	case p.flag == nil:
		return strconv.FormatInt(v, 10)
	case v != 0:
		return "on"
	}
	return "off"
}

// parse reads what a person wrote.
func (p *settingSpec) parse(text string) (int64, error) {
	if p.flag != nil || p.name == "authorized_connections" {
		switch strings.ToLower(text) {
		case "on", "true", "yes":
			if p.flag == nil {
				return 30, nil
			}
			return 1, nil
		case "off", "false", "no":
			return 0, nil
		}
	}
	n, err := strconv.ParseInt(text, 10, 64)
	switch {
	case p.flag != nil && (err != nil || n < 0 || n > 1):
		return 0, petrel.Errorf(petrel.CodeInvalidField, "The setting %s is on or off.", p.name)
	case err != nil || n < p.min || n > p.max:
		return 0, petrel.Errorf(petrel.CodeInvalidField, "The setting %s is a whole number from %d to %d.", p.name, p.min, p.max)
	}
	return n, nil
}

// DefaultSettings are those of an app for which nothing was set.
func DefaultSettings() Settings {
	var s Settings
	for i := range settingSpecs {
		settingSpecs[i].set(&s, settingSpecs[i].def)
	}
	return s
}

// Setting is one setting as a person sees it.
type Setting struct {
	Name    string
	Value   string
	Default string
}

// List shows every setting.
func (s Settings) List() []Setting {
	out := make([]Setting, len(settingSpecs))
	for i := range settingSpecs {
		p := &settingSpecs[i]
		out[i] = Setting{p.name, p.show(p.get(&s)), p.show(p.def)}
	}
	return out
}

// ParseSettings reads a list like "client_events=off,max_event_bytes=20000": names and values with commas or spaces between them. An empty
// value means the default. CodeInvalidField for a name that there is not, or a value that cannot be.
func ParseSettings(list string) (map[string]string, error) {
	out := map[string]string{}
	for _, item := range strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' || r == '\t' }) {
		name, value, ok := strings.Cut(item, "=")
		if !ok {
			return nil, petrel.Errorf(petrel.CodeInvalidField, "%.60q is no setting: write name=value.", item)
		}
		if _, twice := out[name]; twice {
			return nil, petrel.Errorf(petrel.CodeInvalidField, "The setting %.60q comes twice.", name)
		}
		out[name] = value
	}
	_, err := withChanges(nil, out)
	return out, err
}

// withChanges returns the settings that differ from their defaults once changes were made to those that did before, in the order of their names.
func withChanges(before []event.AppSetting, changes map[string]string) ([]event.AppSetting, error) {
	after := make([]event.AppSetting, 0, len(before)+len(changes))
	for _, old := range before {
		if _, ok := changes[old.Name]; !ok {
			after = append(after, old)
		}
	}
	for name, text := range changes {
		i := slices.IndexFunc(settingSpecs, func(p settingSpec) bool { return p.name == name })
		if i < 0 {
			return nil, petrel.Errorf(petrel.CodeInvalidField, "There is no setting %.60q; `petrel app show` lists them all.", name)
		}
		if text == "" {
			continue // its default
		}
		v, err := settingSpecs[i].parse(text)
		if err != nil {
			return nil, err
		}
		if v != settingSpecs[i].def {
			after = append(after, event.AppSetting{Name: name, Value: v})
		}
	}
	slices.SortFunc(after, func(a, b event.AppSetting) int { return cmp.Compare(a.Name, b.Name) })
	return after, nil
}

// settingsOf fills in the defaults. A name that this build does not know counts for nothing.
func settingsOf(set []event.AppSetting) Settings {
	s := DefaultSettings()
	for _, v := range set {
		for i := range settingSpecs {
			if p := &settingSpecs[i]; p.name == v.Name {
				p.set(&s, min(max(v.Value, p.min), p.max))
			}
		}
	}
	return s
}

// packSettings is the form in a row: name=value, one a line.
func packSettings(set []event.AppSetting) string {
	var b strings.Builder
	for _, v := range set {
		b.WriteString(v.Name + "=" + strconv.FormatInt(v.Value, 10) + "\n")
	}
	return b.String()
}

func unpackSettings(text string) (set []event.AppSetting) {
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		n, _ := strconv.ParseInt(value, 10, 64) // we wrote it
		set = append(set, event.AppSetting{Name: name, Value: n})
	}
	return set
}
