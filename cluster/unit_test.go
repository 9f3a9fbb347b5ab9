package cluster

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/memberlist"

	"github.com/revokd/revokd/internal/alloctest"
	"github.com/revokd/revokd/internal/clock/clocktest"
)

func TestNewRefuses(t *testing.T) {
	key := bytes.Repeat([]byte{1}, 32)
	good := func() Config {
		return Config{Name: "a", Bind: "127.0.0.1:0", Meta: func() Meta { return Meta{State: Ready} }}
	}
	if _, err := New(good()); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change func(*Config)
		want   error
		says   string
	}{
		"no name":                {func(c *Config) { c.Name = "" }, ErrConfig, "Name"},
		"name with a slash":      {func(c *Config) { c.Name = "a/b" }, ErrConfig, "Name"},
		"name with a line break": {func(c *Config) { c.Name = "a\nb" }, ErrConfig, "Name"},
		"no address":             {func(c *Config) { c.Bind = "" }, ErrConfig, "Bind"},
		"address by name":        {func(c *Config) { c.Bind = "localhost:1" }, ErrConfig, "ip:port"},
		"advertise nothing":      {func(c *Config) { c.Advertise = "0.0.0.0:1" }, ErrConfig, "Advertise"},
		"no metadata":            {func(c *Config) { c.Meta = nil }, ErrConfig, "Meta"},
		"label":                  {func(c *Config) { c.Label = strings.Repeat("x", 256) }, ErrConfig, "255"},
		"negative":               {func(c *Config) { c.RejoinEvery = -1 }, ErrConfig, "RejoinEvery"},
		"clear beyond loopback":  {func(c *Config) { c.Bind = "0.0.0.0:7956" }, ErrNoKey, "32 random bytes"},
		"clear on a network":     {func(c *Config) { c.Bind = "192.0.2.1:7956" }, ErrNoKey, "bind to 127.0.0.1"},
		"clear and advertised":   {func(c *Config) { c.Advertise = "192.0.2.1:7956" }, ErrNoKey, ""},
		"size of a key":          {func(c *Config) { c.Keys = [][]byte{key[:31]} }, ErrKeySize, "31"},
		"too many keys": {func(c *Config) {
			for i := range 9 {
				c.Keys = append(c.Keys, bytes.Repeat([]byte{byte(i)}, 16))
			}
		}, ErrKeyLimit, ""},
		"seed without a port": {func(c *Config) { c.Seeds = []string{"host"} }, ErrSeed, "host:port"},
		"seed with port 0":    {func(c *Config) { c.Seeds = []string{"host:0"} }, ErrSeed, ""},
		"SRV with a port":     {func(c *Config) { c.Seeds = []string{"dnssrv+host:1"} }, ErrSeed, "without a port"},
		"too many seeds": {func(c *Config) {
			for i := range 65 {
				c.Seeds = append(c.Seeds, fmt.Sprintf("host:%d", i+1))
			}
		}, ErrSeed, "64"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := good()
			test.change(&cfg)
			_, err := New(cfg)
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("error %v, want %v that says %q", err, test.want, test.says)
			}
			if strings.Contains(fmt.Sprint(err), string(key[:31])) {
				t.Error("the key is in the error")
			}
		})
	}
	cfg := good()
	cfg.Bind, cfg.Keys = "0.0.0.0:0", [][]byte{key}
	if _, err := New(cfg); err != nil {
		t.Errorf("with a key: %v", err)
	}
	m, err := New(good())
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Leave(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("error %v", err)
	}
	if _, err := m.InstallKey(key); !errors.Is(err, ErrNoKey) {
		t.Errorf("a key for a node that gossips in the clear: error %v", err)
	}
}

func TestRing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	one, two, three := bytes.Repeat([]byte{1}, 16), bytes.Repeat([]byte{2}, 24), bytes.Repeat([]byte{3}, 32)
	r, err := openRing(path, [][]byte{one, one})
	if err != nil {
		t.Fatal(err)
	}
	is := func(want ...[]byte) {
		t.Helper()
		again, err := openRing(path, [][]byte{bytes.Repeat([]byte{9}, 16)}) // the file wins
		if err != nil {
			t.Fatal(err)
		}
		var keys []Key
		for i, key := range want {
			keys = append(keys, Key{KeyID(key), i == 0})
		}
		if got := r.list(); !reflect.DeepEqual(got, keys) || !reflect.DeepEqual(again.list(), keys) {
			t.Errorf("%v, from the file %v; want %v", got, again.list(), keys)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v; want mode 0600", info.Mode(), err)
		}
	}
	for _, key := range [][]byte{two, three, two} {
		if _, err := r.install(key); err != nil {
			t.Fatal(err)
		}
	}
	is(one, two, three)
	sealed := r.seal(nil, []byte("hello"), []byte("label"))
	if err := r.use(KeyID(three)); err != nil {
		t.Fatal(err)
	}
	is(three, one, two)
	if got := r.open(sealed, []byte("label")); string(got) != "hello" {
		t.Errorf("%q", got)
	}
	if r.open(sealed, []byte("other")) != nil || r.open(sealed[:sealedOverhead], []byte("label")) != nil || r.open(nil, nil) != nil {
		t.Error("opens what it should not")
	}
	for i := range sealed {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		if r.open(bad, []byte("label")) != nil {
			t.Errorf("opens with byte %d changed", i)
		}
	}
	for err, want := range map[error]error{
		r.remove(KeyID(three)): ErrPrimaryKey, r.remove("none"): ErrUnknownKey, r.use("none"): ErrUnknownKey,
	} {
		if !errors.Is(err, want) {
			t.Errorf("error %v, want %v", err, want)
		}
	}
	if err := r.remove(KeyID(one)); err != nil {
		t.Fatal(err)
	}
	is(three, two)
	if r.open(sealed, []byte("label")) != nil {
		t.Error("opens with a key that was removed")
	}
	for i := range MaxKeys {
		_, err = r.install(bytes.Repeat([]byte{byte(10 + i)}, 16))
	}
	if !errors.Is(err, ErrKeyLimit) {
		t.Errorf("error %v", err)
	}
	// What cannot be written down does not take effect.
	before := r.list()
	r.path = filepath.Join(path, "impossible")
	if err := r.use(KeyID(two)); err == nil || !reflect.DeepEqual(r.list(), before) {
		t.Errorf("error %v, keys %v", err, r.list())
	}
}

func TestKeyFileThatIsRefused(t *testing.T) {
	dir := t.TempDir()
	for name, test := range map[string]struct {
		content string
		mode    os.FileMode
		want    error
	}{
		"readable": {"AQEBAQEBAQEBAQEBAQEBAQ==\n", 0o644, ErrKeyFile},
		"empty":    {"", 0o600, ErrKeyFile},
		"garbage":  {"AQEBAQEBAQEBAQEBAQEBAQ==\n!\n", 0o600, ErrKeyFile},
		"short":    {"AQEB\n", 0o600, ErrKeySize},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(test.content), test.mode); err != nil {
			t.Fatal(err)
		}
		if _, err := openRing(path, nil); !errors.Is(err, test.want) || strings.Contains(err.Error(), "AQEB") {
			t.Errorf("%s: error %v, want %v without the key", name, err, test.want)
		}
	}
}

func TestPeersFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "peers")
	if peers, err := readPeers(path); err != nil || peers != nil {
		t.Error(peers, err)
	}
	var content strings.Builder
	content.WriteString("127.0.0.1:1\nnonsense\n[fe80::1%eth0]:2 b\n127.0.0.1:0\n10.0.0.1:9 b\n127.0.0.1:1 again\n10.0.0.1:8 a/b\n10.0.0.1:8 a b\n10.0.0.1:8 \x1b\n")
	for i := range 100_000 {
		fmt.Fprintf(&content, "10.1.%d.%d:7 n%d\n", i/250, i%250, i)
	}
	if err := os.WriteFile(path, []byte(content.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	peers, err := readPeers(path)
	want := []peer{{"", netip.MustParseAddrPort("127.0.0.1:1")}, {"b", netip.MustParseAddrPort("[fe80::1%eth0]:2")}, {"n0", netip.MustParseAddrPort("10.1.0.0:7")}}
	if err != nil || len(peers) != maxRemembered || !reflect.DeepEqual(peers[:3], want) {
		t.Error(len(peers), peers[:min(len(peers), 3)], err)
	}
}

// Of each name the latest address is remembered, of each address the latest name, in the order in which they were alive last.
func TestRecall(t *testing.T) {
	list := func(text string) (peers []peer) {
		for _, field := range strings.Fields(text) {
			name, at, _ := strings.Cut(field, "@")
			peers = append(peers, peer{name, netip.MustParseAddrPort("10.0.0." + at + ":1")})
		}
		return peers
	}
	for name, test := range map[string]struct{ here, remembered, left, want string }{
		"nobody before":            {"a@1 b@2", "", "", "a@1 b@2"},
		"who died stays, behind":   {"c@3", "a@1 b@2 c@3", "", "c@3 a@1 b@2"},
		"who moved":                {"b@7", "a@1 b@2", "", "b@7 a@1"},
		"an address changed hands": {"b@1", "a@1 c@3", "", "b@1 c@3"},
		"who left":                 {"", "a@1 b@2", "a@1", "b@2"},
		"who left where he was, and another one there": {"", "b@1", "a@1", "b@1"},
		"without a name": {"a@1", "@1 @2 @2 @3", "", "a@1 @2 @3"},
	} {
		if got := recall(list(test.here), list(test.remembered), list(test.left)); !reflect.DeepEqual(got, list(test.want)) {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}

func TestMeta(t *testing.T) {
	full := Meta{
		State: Leaving, APIAddr: strings.Repeat("a", MaxAPIAddr), Version: strings.Repeat("v", MaxVersion), Epoch: 1<<64 - 1,
		Incarnation: [16]byte{1, 15: 2}, Cluster: [16]byte{3, 15: 4}, Voters: 1<<64 - 2, Certificate: [32]byte{5, 31: 6},
	}
	for _, m := range []Meta{{State: Starting}, full} {
		b := metaBytes(t, m)
		if len(b) > 512 {
			t.Errorf("%d bytes", len(b))
		}
		for _, later := range [][]byte{nil, []byte("what a later version adds")} {
			if got, err := decodeMeta(append(bytes.Clone(b), later...)); err != nil || got != m {
				t.Errorf("%+v, %v; want %+v", got, err, m)
			}
		}
		for i := range b {
			if _, err := decodeMeta(b[:i]); !errors.Is(err, ErrMeta) {
				t.Errorf("cut to %d of %d bytes: error %v", i, len(b), err)
			}
		}
	}
	for _, m := range []Meta{{}, {State: Ready, APIAddr: "a b"}, {State: Ready, Version: "\x1b[2J"}, {State: Ready, Version: strings.Repeat("v", 65)}} {
		if _, err := m.encode(); !errors.Is(err, ErrMeta) {
			t.Errorf("%+v: error %v", m, err)
		}
	}
	if State(200).String() != "state(200)" || State(0).String() != "state(0)" || Ready.String() != "ready" || Status(0).String() != "status(0)" {
		t.Error("names")
	}
}

func FuzzMeta(f *testing.F) {
	m := Meta{State: Ready, APIAddr: "127.0.0.1:7950", Version: "1.0.0"}
	b, err := m.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		var m Meta
		var err error
		alloctest.AtMost(t, 4*len(b)+64<<10, func() { m, err = decodeMeta(b) })
		if err != nil {
			if m != (Meta{}) || !errors.Is(err, ErrMeta) {
				t.Fatal("an error with content")
			}
			return
		}
		again, err := m.encode()
		if err != nil || !bytes.HasPrefix(b, again) {
			t.Fatalf("%x becomes %x, %v", b, again, err)
		}
	})
}

// nobody sees sightings.
type nobody struct{}

func (nobody) sawAlive(string, uint32)   {}
func (nobody) sawSuspect(string, uint32) {}
func (nobody) sawLeft(string, uint32)    {}

func TestFilterPackets(t *testing.T) {
	ping := encode(msgPing, struct{ SeqNo uint32 }{1})
	suspect := encode(msgSuspect, accusation{1, "b", "c"})
	bad := encode(msgSuspect, accusation{maxAccused, "b", "c"})
	user := []byte{8, 1, 2, 3}
	for name, test := range map[string]struct{ in, want []byte }{
		"ping":                 {ping, ping},
		"suspect":              {suspect, suspect},
		"incarnation":          {bad, nil},
		"user message":         {user, nil},
		"compressed":           {[]byte{9, 1}, nil},
		"empty":                {[]byte{}, nil},
		"unknown":              {[]byte{200}, nil},
		"good compound":        {compound([][]byte{ping, suspect}), compound([][]byte{ping, suspect})},
		"bad ones go":          {compound([][]byte{ping, bad, user, suspect}), compound([][]byte{ping, suspect})},
		"nothing left":         {compound([][]byte{bad, user}), nil},
		"compound in compound": {compound([][]byte{compound([][]byte{ping})}), nil},
		"compound cut short":   {compound([][]byte{ping, suspect})[:20], nil},
		"checksum":             {append([]byte{msgChecked, 0, 0, 0, 0}, ping...), nil},
	} {
		var refused refusals
		f := filter{self: "a", seen: nobody{}, refused: &refused}
		if got := f.packet(test.in); !bytes.Equal(got, test.want) {
			t.Errorf("%s: %x, want %x", name, got, test.want)
		}
		if counted := refused.kind.Load() + refused.incarnation.Load(); (counted == 0) != (test.want != nil && bytes.Equal(test.in, test.want)) {
			t.Errorf("%s: %d refused", name, counted)
		}
	}
}

func FuzzPacket(f *testing.F) {
	f.Add(encode(msgPing, struct{ SeqNo uint32 }{1}))
	f.Add(compound([][]byte{encode(msgSuspect, accusation{1, "b", "c"}), encode(msgAlive, alive{1, "b", []byte{1, 2, 3, 4}, 5, nil, vsn})}))
	f.Fuzz(func(t *testing.T, b []byte) {
		filter := filter{self: "a", seen: nobody{}, refused: &refusals{}}
		var pass []byte
		alloctest.AtMost(t, 4*len(b)+64<<10, func() { pass = filter.packet(b) })
		if pass == nil {
			return
		}
		if again := filter.packet(pass); !bytes.Equal(again, pass) {
			t.Fatalf("%x passes, and of it %x", pass, again)
		}
	})
}

// A value is read to its end and no further, whatever it is made of.
func TestValue(t *testing.T) {
	long := strings.Repeat("x", 70_000)
	list := make([]any, 70_000)
	for _, v := range []any{
		nil, true, false, 0, 127, 128, 255, 256, 65_536, 1 << 40, -1, -32, -33, -129, -40_000, -1 << 40, 1.5, float32(1.5),
		"", "a", long[:31], long[:32], long[:255], long[:256], long,
		[]byte{},
		[]byte(long[:40]), []byte(long),
		[]int{},
		[]int{1, 2, 3},
		list[:16], list,
		map[string]any{},
		map[string]any{"a": []any{1, "b", map[string]int{"c": 1}}},
		alive{1, "b", []byte{1, 2, 3, 4}, 5, nil, vsn},
	} {
		for _, ext := range []bool{false, true} {
			var b bytes.Buffer
			h := new(codec.MsgpackHandle)
			h.WriteExt = ext
			if err := codec.NewEncoder(&b, h).Encode(v); err != nil {
				t.Fatal(err)
			}
			want := bytes.Clone(b.Bytes())
			b.WriteByte(0x91) // the next one
			r := bufio.NewReader(&b)
			got, err := value(r)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%.40v: %d bytes of %d, %v", v, len(got), len(want), err)
			}
			if rest, _ := io.ReadAll(r); len(rest) != 1 {
				t.Fatalf("%.40v: %d bytes are left", v, len(rest))
			}
			for n := range min(len(want), 300) {
				if _, err := value(bufio.NewReader(bytes.NewReader(want[:n]))); err == nil {
					t.Fatalf("%.40v: whole after %d of %d bytes", v, n, len(want))
				}
			}
		}
	}
	for head, size := range map[byte]int{0xc7: 3, 0xc8: 4, 0xc9: 6, 0xd4: 3, 0xd5: 4, 0xd6: 6, 0xd7: 10, 0xd8: 18} { // extensions, of one byte where they say how many
		b := make([]byte, 1, size+2)
		b[0] = head
		if b = b[:size]; head < 0xd0 {
			b[size-2] = 1
			b = b[:size+1]
		}
		if got, err := value(bufio.NewReader(bytes.NewReader(append(bytes.Clone(b), 0xc0)))); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%x: %x, %v", b, got, err)
		}
	}
	if _, err := value(bufio.NewReader(bytes.NewReader([]byte{0xc1}))); !errors.Is(err, errForbidden) {
		t.Error(err)
	}
}

func FuzzStream(f *testing.F) {
	f.Add(encode(msgPing, struct{ SeqNo uint32 }{1}))
	f.Add(encode(msgPushPull, stateHeader{Nodes: 1}, state{"b", []byte{1, 2, 3, 4}, 5, nil, 6, stateAlive, vsn}))
	f.Add(encode(msgPushPull, stateHeader{Nodes: maxStates + 1}))
	f.Fuzz(func(t *testing.T, b []byte) {
		filter := filter{self: "a", seen: nobody{}, refused: &refusals{}}
		var pass []byte
		var err error
		alloctest.AtMost(t, 40*len(b)+64<<10, func() { pass, err = filter.stream(bytes.NewReader(b)) }) // an entry of ten bytes is a state of two hundred
		if err != nil {
			return
		}
		if again, err := filter.stream(bytes.NewReader(pass)); err != nil || !bytes.Equal(again, pass) {
			t.Fatalf("%x passes, and of it %x, %v", pass, again, err)
		}
	})
}

func TestLinesAreLimited(t *testing.T) {
	var out bytes.Buffer
	fake := clocktest.New(time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC))
	l := newLineLog(hclog.New(&hclog.LoggerOptions{Output: &out, Level: hclog.Info}), fake.Mono)
	write := func(line string) {
		t.Helper()
		if _, err := l.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	for range 1000 {
		write("[ERROR] memberlist: Decrypt packet failed: from=1.2.3.4\n[INFO] forged\n")
		write("[DEBUG] memberlist: Stream connection\n")
		write("[WARN]  memberlist: Binding to public address without encryption!\n")
	}
	if n := strings.Count(out.String(), "Decrypt"); n != logBurst {
		t.Errorf("%d lines", n)
	}
	if strings.Contains(out.String(), "Stream") || strings.Contains(out.String(), "Binding") || strings.Contains(out.String(), "\n[INFO] forged") {
		t.Error(out.String())
	}
	out.Reset()
	fake.Advance(logEvery)
	write("[ERROR] memberlist: again\n")
	write("[ERROR] memberlist: again\n")
	if !strings.Contains(out.String(), "left_out_before=980") || strings.Count(out.String(), "again") != 1 || l.leftOut() != 981 {
		t.Error(out.String(), l.leftOut())
	}
}

// Members that are gone are forgotten from the oldest on, and a full cluster admits nobody.
func TestTableIsBounded(t *testing.T) {
	fake := clocktest.New(time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC))
	table := newTable("self", false, fake)
	if _, err := table.setOwn(Meta{State: Ready}); err != nil {
		t.Fatal(err)
	}
	for i := range 3 * maxGone {
		n := node(t, fmt.Sprintf("n%d", i))
		fake.Advance(time.Second)
		table.NotifyJoin(n)
		table.NotifyLeave(n)
	}
	if list := table.list(); len(list) != maxGone || status(&Members{table: table}, fmt.Sprintf("n%d", 3*maxGone-1)) != Dead {
		t.Errorf("%d members", len(list))
	}
	admitted := 0
	for i := range 2 * (MaxMembers + maxGone) {
		n := node(t, fmt.Sprintf("m%d", i))
		if table.NotifyAlive(n) == nil {
			table.NotifyJoin(n)
			admitted++
		}
	}
	if admitted != MaxMembers || len(table.list()) != MaxMembers+maxGone {
		t.Errorf("%d admitted, %d listed", admitted, len(table.list()))
	}
}

func node(t *testing.T, name string) *memberlist.Node {
	return &memberlist.Node{Name: name, Addr: []byte{10, 0, 0, 1}, Port: 7956, Meta: metaBytes(t, Meta{State: Ready})}
}
