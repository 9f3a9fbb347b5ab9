package api

import (
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/revokd/revokd/internal/devissuer"
	"github.com/revokd/revokd/internal/view"
)

func (f *fixture) getFilter(query string) (*http.Response, string) {
	f.Helper()
	r, err := http.NewRequestWithContext(f.Context(), http.MethodGet, f.url+"/filter"+query, nil)
	if err != nil {
		f.Fatal(err)
	}
	return f.do(r)
}

func TestFilter(t *testing.T) {
	f := start(t)
	f.post("Revoke", `{"token":"`+f.mint(devissuer.Params{Sub: canary})+`"}`)
	res, body := f.getFilter("?max_age=1ms")
	if res.StatusCode != http.StatusOK || res.Header.Get("Content-Type") != "application/octet-stream" {
		t.Fatalf("%s: %s", res.Status, body)
	}
	got, err := view.ReadFiltered(strings.NewReader(body), 1<<20)
	if err != nil || got.Filter.Meta().Count != 1 || len(got.Live) != 1 || len(got.Origins) == 0 {
		t.Errorf("%+v, %v", got, err)
	}
	f.clean("the filter", body)
	if res, body := f.getFilter("?max_age=soon"); res.StatusCode != http.StatusBadRequest || !strings.Contains(body, "max_age") {
		t.Errorf("%s: %s", res.Status, body)
	}
	for range filterSends {
		f.server.filters <- struct{}{}
	}
	if res, body := f.getFilter(""); res.StatusCode != http.StatusTooManyRequests || res.Header.Get("Retry-After") == "" {
		t.Errorf("%s: %s", res.Status, body)
	}
	for range filterSends {
		<-f.server.filters
	}
}

func TestLookup(t *testing.T) {
	f := start(t)
	lookup := func(keyID uint64, fingerprints []byte) (int, string) {
		body := `{"keyId":"` + strconv.FormatUint(keyID, 10) + `","fingerprints":"` + base64.StdEncoding.EncodeToString(fingerprints) + `"}`
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.url+"/revokd.v1.ReplicationService/Lookup", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		res, text := f.do(r)
		return res.StatusCode, text
	}
	id := uint64(f.node.KeyID())
	fp := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, 1), 2)
	if code, text := lookup(id, fp); code != http.StatusOK || strings.Contains(text, "records") || !strings.Contains(text, `"quorumAge"`) {
		t.Errorf("%d %s", code, text)
	}
	if code, text := lookup(id+1, fp); code != http.StatusForbidden || !strings.Contains(text, "incompatible") {
		t.Errorf("another key: %d %s", code, text)
	}
	for _, n := range []int{0, 15, 16 * (maxLookup + 1)} {
		if code, text := lookup(id, make([]byte, n)); code != http.StatusBadRequest || !strings.Contains(text, "fingerprints") {
			t.Errorf("%d bytes: %d %s", n, code, text)
		}
	}
	f = start(t, func(c *setup) { c.noRun = true })
	if code, _ := lookup(id, fp); code != http.StatusServiceUnavailable {
		t.Errorf("not ready: %d", code)
	}
	if res, _ := f.getFilter(""); res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("not ready: %s", res.Status)
	}
}
