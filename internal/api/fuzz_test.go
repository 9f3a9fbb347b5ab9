package api

import (
	"bytes"
	"flag"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/revokd/revokd/internal/alloctest"
	"github.com/revokd/revokd/internal/devissuer"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

var (
	fuzzMethods = []string{"Revoke", "RevokeBatch", "Block", "Unblock", "Check", "CheckBatch", "Explain", "Status"}
	fuzzTypes   = []string{"application/json", "application/proto", "application/grpc-web+proto", "application/grpc-web+json"}
)

// FuzzCalls sends any body to any method: the answer is a good one or a refusal, never a 500, and what it
// costs is bounded by what was sent.
func FuzzCalls(f *testing.F) {
	fx := start(f)
	token := fx.mint(devissuer.Params{Sub: "alice", Sid: "s1"})
	scripts, err := os.ReadFile("testdata/requests.txt")
	if err != nil {
		f.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^([A-Z][A-Za-z]+) (\{.*?\}) (=>|!!)`).FindAllSubmatch(scripts, -1) {
		for i, method := range fuzzMethods {
			if method == string(m[1]) && len(m[2]) < 1000 {
				f.Add(byte(i), byte(0), bytes.ReplaceAll(m[2], []byte("$A"), []byte(token)))
			}
		}
	}
	binary, err := proto.Marshal(request(f, "Check", `{"claims":{"iss":"i","a":[1,"x",null,{"b":true}]}}`))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(byte(4), byte(1), binary)
	f.Add(byte(4), byte(2), append([]byte{0, 0, 0, 0, byte(len(binary))}, binary...))
	f.Add(byte(4), byte(0), []byte(`{"claims":{"a":[`+strings.Repeat(`0,`, 3000)+`0]}}`))
	f.Add(byte(1), byte(0), []byte(`{"items":[`+strings.Repeat(`{},`, 999)+`{}]}`))
	seen, calls := map[bool]bool{}, 0
	f.Cleanup(func() {
		// The seeds have both. What a worker of the fuzzer is given may have one only, or be a single input.
		if flag.Lookup("test.fuzz").Value.String() == "" && calls > 10 && len(seen) < 2 {
			f.Errorf("outcomes seen in %d calls: %v", calls, seen)
		}
	})
	f.Fuzz(func(t *testing.T, method, typ byte, body []byte) {
		calls++
		name, content := fuzzMethods[int(method)%len(fuzzMethods)], fuzzTypes[int(typ)%len(fuzzTypes)]
		r := httptest.NewRequest(http.MethodPost, "http://localhost/"+revokdv1connect.RevocationServiceName+"/"+name, bytes.NewReader(body))
		r.Header.Set("Content-Type", content)
		w := httptest.NewRecorder()
		spent := alloctest.Bytes(func() { fx.server.handle(w, r) })
		// A Struct is the worst: two bytes of it become a value of a hundred. And a thousand items have a thousand errors, and a line of the audit each. A call is made
		// once, so there is room for what the node does beside it.
		if spent > 5<<20+64<<10+uint64(len(body))*100 {
			t.Errorf("%s: %d bytes allocated for %d", name, spent, len(body))
		}
		answer, err := io.ReadAll(w.Result().Body)
		if err != nil {
			t.Fatal(err)
		}
		web := strings.HasPrefix(content, "application/grpc-web")
		switch {
		case w.Code >= 500 || bytes.Contains(answer, []byte("grpc-status: 13")) || bytes.Contains(answer, []byte("grpc-status: 2\r")):
			if !web || !bytes.Contains(answer, []byte("envelope")) && !bytes.Contains(answer, []byte("protocol error")) {
				t.Errorf("%s: %d %q for %q", name, w.Code, answer, body)
			}
		case w.Code == http.StatusOK && !web:
			seen[true] = true
		case w.Code == http.StatusBadRequest:
			seen[false] = true
		}
	})
}
