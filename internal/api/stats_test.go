package api

import (
	"io"
	"reflect"
	"strings"
	"testing"

	"github.com/revokd/revokd/node"
	"github.com/revokd/revokd/revocation"
)

// shown says which metric shows a field of the owners' Stats. A new field needs its row here, and so its metric, or a reason for none.
var shown = map[string]string{
	"WriteStats.Revoked": "revokd_writes_total", "WriteStats.Covered": "revokd_writes_total", "WriteStats.AlreadyExpired": "revokd_writes_total",
	"WriteStats.Unblocked": "revokd_writes_total", "WriteStats.Refused": "revokd_writes_total", "WriteStats.Failed": "revokd_writes_total",
	"TableStats.LiveShapes": "revokd_live_shapes",
	"Stats.Items":           "revokd_records", "Stats.Limit": "revokd_records_limit", "Stats.Bytes": "revokd_memory_bytes",
	"Stats.BytesLimit": "revokd_memory_limit_bytes", "Stats.Expired": "revokd_expired_total",
}

var notShown = map[string]string{
	"TableStats.Stats":  "its fields are",
	"TableStats.Shapes": "shapes without records are no load, and the live ones are shown",
	"Stats.LookupBytes": "a part of Bytes that only benchmarks ask for", "Stats.Shards": "a constant",
	"Stats.Sweeps": "how the store works, nothing to act on", "Stats.Rebuilds": "the same", "Stats.Grows": "the same",
	"Stats.FilterBits": "the same", "Stats.Saturation": "the same",
}

func TestStatsAreShown(t *testing.T) {
	f := start(t)
	res, err := f.http.Get(f.url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, v := range []any{node.WriteStats{}, revocation.TableStats{}, revocation.TableStats{}.Stats} {
		typ := reflect.TypeOf(v)
		for i := range typ.NumField() {
			name := typ.Name() + "." + typ.Field(i).Name
			seen[name] = true
			switch metric := shown[name]; {
			case metric == "" && notShown[name] == "":
				t.Errorf("%s is shown by no metric", name)
			case metric != "" && !strings.Contains(string(b), "\n"+metric):
				t.Errorf("%s: there is no metric %s", name, metric)
			}
		}
	}
	for _, rows := range []map[string]string{shown, notShown} {
		for name := range rows {
			if !seen[name] {
				t.Errorf("%s is in the table and no field", name)
			}
		}
	}
}
