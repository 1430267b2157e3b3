package cloudwatch

import (
	"encoding/base64"
	"slices"
	"strconv"
	"time"

	"berth.dev/berth/cluster/series"
)

// Limits of CloudWatch (CloudWatch API reference).
const (
	maxDatapoints = 1440    // of GetMetricStatistics
	maxDataValues = 100_800 // of GetMetricData
	maxQueries    = 500
	maxDimensions = 30
	listPage      = 500
	activeFor     = 14 * 24 * time.Hour // ListMetrics shows what had points in two weeks
	maxListed     = 100_000             // names of one kind
)

// statistics are the numbers that a set has.
var statistics = map[string]func(series.Set) float64{
	"SampleCount": func(s series.Set) float64 { return float64(s.Count) },
	"Sum":         func(s series.Set) float64 { return s.Sum },
	"Average":     func(s series.Set) float64 { return s.Sum / float64(s.Count) },
	"Minimum":     func(s series.Set) float64 { return s.Min },
	"Maximum":     func(s series.Set) float64 { return s.Max },
}

// span is a time asked for, in periods.
type span struct {
	from, to time.Time
	period   time.Duration
}

// spanOf reads StartTime and EndTime.
func spanOf(t tree) (span, error) {
	from, err := t.instant("StartTime")
	if err != nil {
		return span{}, err
	}
	to, err := t.instant("EndTime")
	if err != nil {
		return span{}, err
	}
	if !from.Before(to) {
		return span{}, malformed("The parameter StartTime must be less than the parameter EndTime.")
	}
	return span{from: from, to: to}, nil
}

// periodOf reads Period, in seconds.
func periodOf(t tree) (time.Duration, error) {
	n, err := t.number("Period")
	switch {
	case err != nil:
		return 0, err
	case n == 0:
		return 0, missing("Period")
	case n < 60 || n%60 != 0 || n > 365*24*3600:
		return 0, malformed("The parameter Period must be a multiple of 60 of at most a year: points are of a minute or longer.")
	}
	return time.Duration(n) * time.Second, nil
}

func dimensionsFrom(t tree) ([]dimension, error) {
	list, err := t.trees("Dimensions")
	if err != nil {
		return nil, err
	}
	if len(list) > maxDimensions {
		return nil, malformed("A metric has at most %d dimensions.", maxDimensions)
	}
	out := make([]dimension, len(list))
	for i, d := range list {
		if out[i].name, err = d.text("Name"); err != nil {
			return nil, err
		}
		if out[i].value, err = d.text("Value"); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// fold puts the points of a series into periods that begin at the span's begin.
func (p span) fold(points []series.Point) []series.Point {
	var out []series.Point
	for _, pt := range points {
		at := p.from.Add(pt.At.Sub(p.from) / p.period * p.period)
		if n := len(out); n > 0 && out[n-1].At.Equal(at) {
			out[n-1].Set = out[n-1].Set.Add(pt.Set)
			continue
		}
		out = append(out, series.Point{At: at, Set: pt.Set})
	}
	return out
}

// getMetricStatistics answers with the statistics of one metric.
func (s *Server) getMetricStatistics(t tree) (tree, error) {
	var namespace, name, unit string
	for _, member := range []struct {
		name string
		into *string
		must bool
	}{{"Namespace", &namespace, true}, {"MetricName", &name, true}, {"Unit", &unit, false}} {
		v, err := t.text(member.name)
		if err != nil {
			return nil, err
		}
		if v == "" && member.must {
			return nil, missing(member.name)
		}
		*member.into = v
	}
	dims, err := dimensionsFrom(t)
	if err != nil {
		return nil, err
	}
	p, err := spanOf(t)
	if err != nil {
		return nil, err
	}
	if p.period, err = periodOf(t); err != nil {
		return nil, err
	}
	p.from = p.from.Truncate(time.Minute)
	if n := int64((p.to.Sub(p.from) + p.period - 1) / p.period); n > maxDatapoints {
		return nil, combination("You have requested up to %d datapoints, which exceeds the limit of %d. You may reduce the datapoints requested by increasing Period, or decreasing the time range.", n, maxDatapoints)
	}
	stats, err := statisticsOf(t)
	if err != nil {
		return nil, err
	}
	points := []any{}
	if m, row, ok := s.find(namespace, name, dims); ok && (unit == "" || unit == m.unit) {
		series, err := s.Series.Read(m.kind, []series.Selector{{Name: row, Metric: m.of}}, p.from, p.to, s.Now())
		if err != nil {
			return nil, err
		}
		for _, pt := range p.fold(series[0]) {
			d := tree{"Timestamp": pt.At, "Unit": m.unit}
			for _, stat := range stats {
				d[stat] = statistics[stat](pt.Set)
			}
			points = append(points, d)
		}
	}
	return tree{"Label": name, "Datapoints": points}, nil
}

func statisticsOf(t tree) ([]string, error) {
	stats, err := t.texts("Statistics")
	if err != nil {
		return nil, err
	}
	extended, err := t.texts("ExtendedStatistics")
	switch {
	case err != nil:
		return nil, err
	case len(extended) > 0:
		return nil, malformed("Percentiles are not kept: ask for SampleCount, Average, Sum, Minimum or Maximum.")
	case len(stats) == 0:
		return nil, missing("Statistics")
	}
	for _, stat := range stats {
		if statistics[stat] == nil {
			return nil, malformed("The statistic %s is none of SampleCount, Average, Sum, Minimum and Maximum.", clip(stat))
		}
	}
	return stats, nil
}

// dataQuery is one query of GetMetricData.
type dataQuery struct {
	id, label, stat string
	metric          metric
	row             string
	found, shown    bool
	period          time.Duration
}

func (s *Server) dataQueryOf(t tree) (q dataQuery, err error) {
	if q.id, err = t.text("Id"); err != nil {
		return q, err
	}
	if q.id == "" {
		return q, missing("MetricDataQueries.member.Id")
	}
	if q.label, err = t.text("Label"); err != nil {
		return q, err
	}
	if q.shown, err = t.flag("ReturnData", true); err != nil {
		return q, err
	}
	stat := asTree(t["MetricStat"])
	if stat == nil {
		return q, malformed("The query %s has no MetricStat: metric math expressions are not evaluated here.", clip(q.id))
	}
	if q.stat, err = stat.text("Stat"); err != nil {
		return q, err
	}
	if statistics[q.stat] == nil {
		return q, malformed("The statistic %s is none of SampleCount, Average, Sum, Minimum and Maximum.", clip(q.stat))
	}
	if q.period, err = periodOf(stat); err != nil {
		return q, err
	}
	of := asTree(stat["Metric"])
	namespace, err1 := of.text("Namespace")
	name, err2 := of.text("MetricName")
	if err1 != nil || err2 != nil || of == nil || namespace == "" || name == "" {
		return q, malformed("The query %s has no metric with a Namespace and a MetricName.", clip(q.id))
	}
	dims, err := dimensionsFrom(of)
	if err != nil {
		return q, err
	}
	unit, err := stat.text("Unit")
	if err != nil {
		return q, err
	}
	q.metric, q.row, q.found = s.find(namespace, name, dims)
	q.found = q.found && (unit == "" || unit == q.metric.unit)
	if q.label == "" {
		q.label = name
	}
	return q, nil
}

// getMetricData answers with one statistic of each of many metrics.
func (s *Server) getMetricData(t tree) (tree, error) {
	all, err := spanOf(t)
	if err != nil {
		return nil, err
	}
	list, err := t.trees("MetricDataQueries")
	switch {
	case err != nil:
		return nil, err
	case len(list) == 0:
		return nil, missing("MetricDataQueries")
	case len(list) > maxQueries:
		return nil, malformed("A request has at most %d queries.", maxQueries)
	}
	order, err := t.text("ScanBy")
	if err != nil {
		return nil, err
	}
	queries := make([]dataQuery, len(list))
	seen := make(map[string]bool)
	values := int64(0)
	for i := range list {
		if queries[i], err = s.dataQueryOf(list[i]); err != nil {
			return nil, err
		}
		if seen[queries[i].id] {
			return nil, malformed("The id %s is there twice.", clip(queries[i].id))
		}
		seen[queries[i].id] = true
		values += int64(all.to.Sub(all.from)/queries[i].period) + 1
	}
	if values > maxDataValues {
		return nil, combination("You have requested up to %d values, which exceeds the limit of %d. You may reduce them by increasing Period, or decreasing the time range.", values, maxDataValues)
	}
	found, err := s.readAll(queries, all)
	if err != nil {
		return nil, err
	}
	results := []any{}
	for i, q := range queries {
		if !q.shown {
			continue
		}
		points := found[i]
		if order != "TimestampAscending" {
			slices.Reverse(points)
		}
		times, numbers := []any{}, []any{}
		for _, p := range points {
			times, numbers = append(times, p.At), append(numbers, statistics[q.stat](p.Set))
		}
		results = append(results, tree{"Id": q.id, "Label": q.label, "Timestamps": times, "Values": numbers, "StatusCode": "Complete"})
	}
	return tree{"MetricDataResults": results, "Messages": []any{}}, nil
}

// readAll reads what all queries ask for, those of one kind and period at once.
func (s *Server) readAll(queries []dataQuery, all span) ([][]series.Point, error) {
	out := make([][]series.Point, len(queries))
	type group struct {
		kind   series.Kind
		period time.Duration
	}
	groups := make(map[group][]int)
	for i, q := range queries {
		if q.found {
			g := group{q.metric.kind, q.period}
			groups[g] = append(groups[g], i)
		}
	}
	for g, members := range groups {
		p := span{all.from.Truncate(g.period), all.to, g.period}
		of := make([]series.Selector, len(members))
		for j, i := range members {
			of[j] = series.Selector{Name: queries[i].row, Metric: queries[i].metric.of}
		}
		read, err := s.Series.Read(g.kind, of, p.from, p.to, s.Now())
		if err != nil {
			return nil, err
		}
		for j, i := range members {
			out[i] = p.fold(read[j])
		}
	}
	return out, nil
}

// listing is what ListMetrics is asked for.
type listing struct {
	namespace, name string
	filters         []dimension
	since           time.Time
	skip            int
}

func (s *Server) listingOf(t tree) (l listing, err error) {
	if l.namespace, err = t.text("Namespace"); err != nil {
		return l, err
	}
	if l.name, err = t.text("MetricName"); err != nil {
		return l, err
	}
	if l.filters, err = dimensionsFrom(t); err != nil {
		return l, err
	}
	token, err := t.text("NextToken")
	if err != nil {
		return l, err
	}
	if l.skip, err = position(token); err != nil {
		return l, err
	}
	recent, err := t.text("RecentlyActive")
	switch {
	case err != nil:
		return l, err
	case recent == "":
		l.since = s.Now().Add(-activeFor)
	case recent == "PT3H":
		l.since = s.Now().Add(-3 * time.Hour)
	default:
		return l, malformed("RecentlyActive can only be PT3H.")
	}
	return l, nil
}

func (l *listing) has(m metric) bool {
	return (l.namespace == "" || m.namespace == l.namespace) && (l.name == "" || m.name == l.name)
}

// listMetrics answers with the metrics of clusters, services and so on that had points lately.
func (s *Server) listMetrics(t tree) (tree, error) {
	l, err := s.listingOf(t)
	if err != nil {
		return nil, err
	}
	list := []any{}
	n := 0
	for k := range series.Kinds {
		wanted := slices.DeleteFunc(slices.Clone(catalog), func(m metric) bool { return m.kind != k || !l.has(m) })
		if len(wanted) == 0 {
			continue
		}
		rows, err := s.Series.Names(k, l.since, maxListed)
		if err != nil {
			return nil, err
		}
		for _, row := range rows {
			dims, ok := s.dimensionsOf(k, row.Name)
			if !ok || !hasAll(dims, l.filters) {
				continue
			}
			shown := make([]any, len(dims))
			for i, d := range dims {
				shown[i] = tree{"Name": d.name, "Value": d.value}
			}
			for _, m := range wanted {
				if !row.Has.Has(m.of) {
					continue
				}
				if n++; n <= l.skip {
					continue
				}
				if len(list) == listPage {
					next := base64.RawURLEncoding.EncodeToString([]byte(strconv.Itoa(l.skip + listPage)))
					return tree{"Metrics": list, "NextToken": next}, nil
				}
				list = append(list, tree{"Namespace": m.namespace, "MetricName": m.name, "Dimensions": shown})
			}
		}
	}
	return tree{"Metrics": list}, nil
}

// position is how many metrics a token leaves out.
func position(token string) (int, error) {
	if token == "" {
		return 0, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(token)
	n, err2 := strconv.Atoi(string(b))
	if err != nil || err2 != nil || n < 0 {
		return 0, refused("InvalidParameterValue", "InvalidParameterValueException", "NextToken is none that ListMetrics has given.")
	}
	return n, nil
}

// hasAll reports whether dimensions have all that is filtered for; a filter without a
// value asks for the name alone.
func hasAll(dims, filters []dimension) bool {
	for _, f := range filters {
		if !slices.ContainsFunc(dims, func(d dimension) bool { return d.name == f.name && (f.value == "" || d.value == f.value) }) {
			return false
		}
	}
	return true
}
