package api

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/revokd/revokd/internal/bearer"
	"github.com/revokd/revokd/internal/credentials"
	"github.com/revokd/revokd/node"
	"github.com/revokd/revokd/revocation"
)

// published has a row for each limit in docs/operations.md: its text there, the value that the code has, the value that the text means, and the test that
// holds it at its edge.
func published() []struct {
	what     string
	has, say any
	test     string // package and name
} {
	var l Limits
	l.defaults()
	return []struct {
		what     string
		has, say any
		test     string
	}{
		{"connections", l.Connections, 10_000, "internal/api TestConnectionLimit"},
		{"connections on which nobody has shown who he is", l.Strangers, 1000, "internal/api TestDoor"},
		{"of these from one address, while there are too many", newDoor(nil, l, nil).share, 100, "internal/api TestDoor"},
		{"calls at once on a connection", http2Streams, 250, "internal/api TestStreamsOfAConnection"},
		{"streams of revocations", l.Streams, 64, "internal/api TestStreamLimit"},
		{"headers", maxHeaderBytes, 16 << 10, "internal/api TestHeaderLimit"},
		{"request", l.Message, 1 << 20, "internal/api TestSizes"},
		{"batch, message of a stream", l.Batch, 8 << 20, "internal/api TestSizes"},
		{"all requests together", l.Total, int64(64 << 20), "internal/api TestTotal"},
		{"items in one message", maxItems, 1000, "internal/api TestBatchLimit"},
		{"values in a request", partsOfOne, 4096, "internal/api TestParts"},
		{"values in a batch", partsOfMany, 100_000, "internal/api TestParts"},
		{"nesting of a message", maxNesting, 128, "internal/api TestParts"},
		{"claims of a check", revocation.MaxPayloadBytes, 8 << 10, "revocation TestParseClaimsRefuses"},
		{"depth of claims", revocation.MaxDepth, 8, "revocation TestParseClaimsRefuses"},
		{"value of a claim", revocation.MaxValueBytes, 512, "revocation TestParseMatch"},
		{"live shapes", revocation.MaxLiveShapes, 64, "internal/api TestShapes"},
		{"of these that one writer was the first to use", revocation.WriterShapes, 16, "internal/api TestShapesOfWriters"},
		{"of these for admins only", revocation.AdminShapes, 8, "internal/api TestShapesOfWriters"},
		{"comment", maxComment, 256, "internal/api TestScripts"},
		{"idempotency key", maxKey, 64, "internal/api TestScripts"},
		{"headers to arrive, handshake of TLS", headerTimeout, 5 * time.Second, "internal/api TestSilence"},
		{"request to arrive, answer of a stream to be read", l.Read, 15 * time.Second, "internal/api TestSlowBody"},
		{"call", l.Deadline, 30 * time.Second, "internal/api TestDeadline"},
		{"connection without a call, stream without a message", l.Idle, 2 * time.Minute, "internal/api TestStreamIdle"},
		{"tokens not in force, from one address", failuresPerMinute, 10, "internal/api TestFailuresOfAnAddress"},
		{"records of a writer, in calls", l.WriterRate, 1000, "internal/api TestBudgets"},
		{"records of a writer, in streams", l.BulkRate, 50_000, "internal/api TestBudgets"},
		{"records of an issuer", l.IssuerRate, 50_000, "internal/api TestBudgets"},
		{"live records that writers have written for an issuer", new(node.Config).IssuerRecords, 0, "internal/api TestQuotas"},
		{"live records that were written under a grant", new(credentials.Caller).Records, 0, "internal/api TestQuotas"},
		{"issuers and grants whose live records are counted apart", node.MaxAccounts, 1024, "node TestManyQuotas"},
		{"addresses, writers, issuers told apart", maxBuckets, 4096, "internal/api TestRates"},
		{"confirmations that wait", maxConfirms, 64, "internal/api TestConfirmationsAreBounded"},
		{"of these of one caller", maxOfCaller, 8, "internal/api TestConfirmationsAreBounded"},
		{"a confirmation is good for", confirmTime, 2 * time.Minute, "internal/api TestConfirm"},
		{"bearer token, letters", []int{bearer.MinBytes, bearer.MaxBytes}, []int{22, 256}, "internal/bearer TestFormat"},
		{"credentials of each kind", credentials.MaxEntries, 1000, "internal/credentials TestRefused"},
		{"life of a token", credentials.MaxLifetime, 400 * 24 * time.Hour, "internal/credentials TestRefused"},
	}
}

// Every limit that is published is the one in the code, and a test holds it at its edge.
func TestPublishedLimits(t *testing.T) {
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "\n## Limits\n")
	if !ok {
		t.Fatal("docs/operations.md has no limits")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	rows := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\| ([^|]+) \| ([^|]+) \|`).FindAllStringSubmatch(section, -1) {
		if m[1] != "What" && !strings.HasPrefix(m[1], "---") {
			rows[m[1]] = true
		}
	}
	for _, p := range published() {
		if fmt.Sprint(p.has) != fmt.Sprint(p.say) {
			t.Errorf("%s: the code has %v, not %v", p.what, p.has, p.say)
		}
		if !rows[p.what] {
			t.Errorf("docs/operations.md does not know: %s", p.what)
		}
		delete(rows, p.what)
		dir, name, _ := strings.Cut(p.test, " ")
		files, err := filepath.Glob(filepath.Join("../..", dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			found = found || bytes.Contains(b, []byte("\nfunc "+name+"("))
		}
		if !found {
			t.Errorf("%s: there is no %s", p.what, p.test)
		}
	}
	for what := range rows {
		t.Errorf("no test holds what docs/operations.md says of: %s", what)
	}
}

// One connection carries 250 calls at once and no more; the others go on.
func TestStreamsOfAConnection(t *testing.T) {
	f := start(t)
	c := f.dial()
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(c, c)
	if err := errors.Join(framer.WriteSettings(), framer.WriteSettingsAck()); err != nil {
		t.Fatal(err)
	}
	block := func() []byte {
		var b bytes.Buffer
		e := hpack.NewEncoder(&b)
		e.SetMaxDynamicTableSize(0)
		for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":authority", "localhost"}, {":path", check}, {"content-type", "application/json"}} {
			if err := e.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}); err != nil {
				t.Fatal(err)
			}
		}
		return b.Bytes()
	}
	for i := range uint32(http2Streams + 1) { // none of which ends
		if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: block(), EndHeaders: true}); err != nil {
			t.Fatal(err)
		}
	}
	const last = 2*http2Streams + 1
	told := uint32(0)
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			t.Fatalf("the connection ended: %v", err)
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if v, ok := frame.Value(http2.SettingMaxConcurrentStreams); ok {
				told = v
			}
			continue
		case *http2.RSTStreamFrame:
			if frame.StreamID != last || told != http2Streams {
				t.Errorf("call %d was refused; the server says it takes %d", frame.StreamID/2+1, told)
			}
		default:
			continue
		}
		break
	}
	if res, _ := f.get("/healthz"); res.StatusCode != http.StatusOK {
		t.Errorf("another connection: %d", res.StatusCode)
	}
}

// Who connects and says nothing, or half of it, is cut off: before the handshake, in it, and in the headers.
func TestSilence(t *testing.T) {
	plain, secure := start(t), startTLS(t)
	for name, c := range map[string]struct {
		at   *fixture
		says string
		tls  bool
	}{
		"no handshake":       {secure.fixture, "", false},
		"half a handshake":   {secure.fixture, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", false},
		"no headers":         {plain, "", false},
		"half of a header":   {plain, "GET /healthz HTTP/1.1\r\nHost: local", false},
		"no headers, secure": {secure.fixture, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // each takes five seconds
			conn, err := net.Dial("tcp", strings.NewReplacer("http://", "", "https://", "").Replace(c.at.url))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(headerTimeout + 15*time.Second)); err != nil {
				t.Fatal(err)
			}
			if c.tls {
				conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
			}
			if c.says != "" {
				if _, err := io.WriteString(conn, c.says); err != nil {
					t.Fatal(err)
				}
			}
			_, err = io.Copy(io.Discard, conn)
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				t.Error("it is still connected")
			}
		})
	}
}

// A call ends by its deadline, whatever the caller asks for.
func TestDeadline(t *testing.T) {
	f := start(t, func(c *setup) { c.api.Limits.Deadline = 100 * time.Millisecond })
	f.server.mux.HandleFunc("POST /revokd.v1.Test/Wait", func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
			w.WriteHeader(http.StatusGatewayTimeout)
		case <-time.After(10 * time.Second): // far more than it has
		}
	})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.url+"/revokd.v1.Test/Wait", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Connect-Timeout-Ms", "60000")
	if res, _ := f.do(req); res.StatusCode != http.StatusGatewayTimeout {
		t.Errorf("%d", res.StatusCode)
	}
}
