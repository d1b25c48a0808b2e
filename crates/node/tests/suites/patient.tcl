
# Appended to SQLite's tester.tcl for runs on the mount. Most files need a tenth of a second in all: the daemon would not have found their
# databases before they end. So after each test that has made a database, or made one anew, it gets time to find it.
if {[info commands do_test_at_once]==""} {
  rename do_test do_test_at_once
  set ::patient_times 0
  proc patient_wait {} {
    foreach name {test.db test2.db test3.db test4.db} {
      if {[catch {file stat $name stat}] || $stat(size)==0} continue
      if {[info exists ::patient_seen($name)] && $::patient_seen($name)==$stat(ino)} continue
      set ::patient_seen($name) $stat(ino)
      # A file that makes hundreds of databases has shown enough by then.
      if {[incr ::patient_times]<=60} { after 350 }
    }
  }
  proc do_test {args} {
    set result [uplevel 1 [linsert $args 0 do_test_at_once]]
    patient_wait
    set result
  }
}

# The daemon is one more connection, which holds locks for some milliseconds. Applications have a busy timeout for that, and so do the tests here.
if {[info commands sqlite3_at_once]==""} {
  rename sqlite3 sqlite3_at_once
  proc sqlite3 {args} {
    set result [uplevel 1 [linsert $args 0 sqlite3_at_once]]
    if {[llength $args]>=2 && [string index [lindex $args 0] 0]!="-"} {
      catch {uplevel 1 [list [lindex $args 0] timeout 300]}
    }
    set result
  }
  catch {db timeout 300}
}
