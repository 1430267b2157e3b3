// Command guest runs in a task and does what a test asks of it over HTTP: it makes
// requests from inside the task's network, tells its environment, and uses an AWS SDK.
// Its argument is the address to listen on.
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
)

// Fetch is a request to be made from inside.
type Fetch struct {
	Method, URL, Host, Body string
	Header                  map[string]string
	// Raw is sent as it is to the address in URL instead of an HTTP request.
	Raw string
	// Count repeats the request, at most Parallel at a time.
	Count, Parallel int
	// Patience is how many seconds a request may take; 3 if it is 0.
	Patience int
	// Follow has redirections followed.
	Follow bool
}

// Answer is what came of it.
type Answer struct {
	Status int
	Body   string
	Err    string
	// Statuses counts the answers of a repeated request; 0 is no answer.
	Statuses map[int]int
}

func main() {
	http.HandleFunc("/env", func(w http.ResponseWriter, _ *http.Request) { reply(w, os.Environ()) })
	http.HandleFunc("/fetch", func(w http.ResponseWriter, r *http.Request) {
		var f Fetch
		if err := json.NewDecoder(r.Body).Decode(&f); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		reply(w, fetch(&f))
	})
	http.HandleFunc("/read", func(w http.ResponseWriter, r *http.Request) {
		b, err := os.ReadFile(r.URL.Query().Get("path"))
		reply(w, Answer{Body: string(b), Err: text(err)})
	})
	http.HandleFunc("/link", func(w http.ResponseWriter, _ *http.Request) { reply(w, link()) })
	http.HandleFunc("/frames", func(w http.ResponseWriter, r *http.Request) {
		var list [][]byte
		if err := json.NewDecoder(r.Body).Decode(&list); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		reply(w, Answer{Err: text(frames(list))})
	})
	http.HandleFunc("/address", func(w http.ResponseWriter, _ *http.Request) { reply(w, Answer{Err: text(ownAddress())}) })
	http.HandleFunc("/listen", func(w http.ResponseWriter, r *http.Request) {
		reply(w, Answer{Err: text(listen(r.URL.Query().Get("at")))})
	})
	http.HandleFunc("/sdk", func(w http.ResponseWriter, r *http.Request) { reply(w, sdk(r)) })
	if err := http.ListenAndServe(os.Args[1], nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func reply(w http.ResponseWriter, v any) {
	json.NewEncoder(w).Encode(v) //nolint:errcheck // the test sees that the answer is cut
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func fetch(f *Fetch) Answer {
	if f.Raw != "" {
		return raw(f)
	}
	client := &http.Client{
		Timeout:       time.Duration(cmp.Or(f.Patience, 3)) * time.Second,
		Transport:     &http.Transport{MaxIdleConnsPerHost: 256},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if f.Follow {
		client.CheckRedirect = nil
	}
	defer client.CloseIdleConnections()
	if f.Count == 0 {
		return once(client, f)
	}
	statuses := make(map[int]int)
	var mu sync.Mutex
	var wg sync.WaitGroup
	var left atomic.Int64
	left.Store(int64(f.Count))
	for range max(1, f.Parallel) {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				a := once(client, f)
				mu.Lock()
				statuses[a.Status]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return Answer{Statuses: statuses}
}

func once(client *http.Client, f *Fetch) Answer {
	method := f.Method
	if method == "" {
		method = http.MethodGet
	}
	req, err := http.NewRequest(method, f.URL, bytes.NewReader([]byte(f.Body)))
	if err != nil {
		return Answer{Err: err.Error()}
	}
	for k, v := range f.Header {
		req.Header.Set(k, v)
	}
	if f.Host != "" {
		req.Host = f.Host
	}
	resp, err := client.Do(req)
	if err != nil {
		return Answer{Err: err.Error()}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return Answer{Status: resp.StatusCode, Body: string(b), Err: text(err)}
}

// raw sends bytes and returns the first line of what comes back as the body.
func raw(f *Fetch) Answer {
	c, err := net.DialTimeout("tcp", f.URL, 3*time.Second)
	if err != nil {
		return Answer{Err: err.Error()}
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(8 * time.Second)); err != nil {
		return Answer{Err: err.Error()}
	}
	go io.Copy(c, strings.NewReader(f.Raw)) //nolint:errcheck // what matters is the answer
	line, err := bufio.NewReader(io.LimitReader(c, 4096)).ReadString('\n')
	return Answer{Body: strings.TrimSpace(line), Err: text(err)}
}

// listen answers whoever connects to an address from now on with the word "forged".
func listen(at string) error {
	l, err := net.Listen("tcp", at)
	if err != nil {
		return err
	}
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "forged") })) //nolint:errcheck,gosec // as long as the program lives
	return nil
}

// Identity is what an AWS SDK made of the container's environment.
type Identity struct {
	AccessKeyID, Source, Err string
	// Families are the task definitions that ListTaskDefinitionFamilies gives, asked at
	// the address in the query.
	Families []string
	CallErr  string
}

// sdk loads credentials by the default chain of an AWS SDK and calls ECS with them.
func sdk(r *http.Request) Identity {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := config.LoadDefaultConfig(ctx, config.WithEC2IMDSClientEnableState(0))
	if err != nil {
		return Identity{Err: err.Error()}
	}
	keys, err := c.Credentials.Retrieve(ctx)
	out := Identity{AccessKeyID: keys.AccessKeyID, Source: keys.Source, Err: text(err)}
	endpoint := r.URL.Query().Get("endpoint")
	if err != nil || endpoint == "" {
		return out
	}
	cl := ecs.NewFromConfig(c, func(o *ecs.Options) { o.BaseEndpoint = &endpoint; o.RetryMaxAttempts = 1 })
	switch r.URL.Query().Get("op") {
	case "delete":
		_, err = cl.DeleteCluster(ctx, &ecs.DeleteClusterInput{Cluster: &[]string{"default"}[0]})
	default:
		var list *ecs.ListTaskDefinitionFamiliesOutput
		if list, err = cl.ListTaskDefinitionFamilies(ctx, &ecs.ListTaskDefinitionFamiliesInput{}); err == nil {
			out.Families = list.Families
		}
	}
	out.CallErr = text(err)
	return out
}
