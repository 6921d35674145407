import java.io.IOException;
import java.net.InetSocketAddress;
import javax.servlet.http.HttpServlet;
import javax.servlet.http.HttpServletRequest;
import javax.servlet.http.HttpServletResponse;
import javax.servlet.http.HttpSession;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.servlet.ServletContextHandler;
import org.eclipse.jetty.servlet.ServletHolder;

/** What an Apache CloudStack management server is to a balancer: a Jetty with sessions under `/client`. */
public final class ManagementServer {
    /** Arguments: an address, a port and a name. */
    public static void main(String[] arguments) throws Exception {
        Server server = new Server(new InetSocketAddress(arguments[0], Integer.parseInt(arguments[1])));
        ServletContextHandler context = new ServletContextHandler(ServletContextHandler.SESSIONS);
        context.setContextPath("/client");
        context.addServlet(new ServletHolder(new Pages(arguments[2])), "/*");
        server.setHandler(context);
        server.start();
        server.join();
    }

    /** `/client/` is for checks. `/client/api` counts the requests of a session, and says whose it is. */
    private static final class Pages extends HttpServlet {
        private final String name;

        Pages(String name) {
            this.name = name;
        }

        @Override
        protected void doGet(HttpServletRequest request, HttpServletResponse response) throws IOException {
            response.setContentType("text/plain");
            if (!"/api".equals(request.getPathInfo())) {
                response.getWriter().println(name);
                return;
            }
            HttpSession session = request.getSession();
            Integer before = (Integer) session.getAttribute("requests");
            int count = before == null ? 1 : before + 1;
            session.setAttribute("requests", count);
            response.getWriter().println(name + " " + count);
        }
    }
}
